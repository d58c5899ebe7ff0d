//! Pods come and go.

use sim::script::Story;

use crate::hold;

#[test]
fn creates_pods() {
    hold(&Story::new("creates pods").create(3).settle().pods("web-0:1 web-1:1 web-2:1").claims("data-web-0 data-web-1 data-web-2").revisions("1:1"));
}

#[test]
fn scales_up() {
    hold(&Story::new("scales up").create(2).settle().scale(4).settle().pods("web-0:1 web-1:1 web-2:1 web-3:1"));
}

#[test]
fn scales_down() {
    hold(&Story::new("scales down").create(3).settle().scale(0).settle().pods("").claims_if(|case| {
        if case.delete_when_scaled { "" } else { "data-web-0 data-web-1 data-web-2" }
    }));
}
#[test]
fn updates() {
    hold(&Story::new("updates").create(3).settle().orderly().image("2").settle().pods("web-0:2 web-1:2 web-2:2").revisions("1:1 2:2"));
}
