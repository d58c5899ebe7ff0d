//! The process's metrics, served as OpenMetrics text under `/metrics` of every service.

use std::sync::OnceLock;

use parking_lot::Mutex;
use prometheus_client::{encoding::text::encode, registry::Registry};

fn registry() -> &'static Mutex<Registry> {
    static REGISTRY: OnceLock<Mutex<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(|| Mutex::new(Registry::with_prefix("berth")))
}

/// Registers metrics; call once for each, when the service starts.
pub fn register(with: impl FnOnce(&mut Registry)) {
    with(&mut registry().lock());
}

/// All metrics as text.
pub fn text() -> String {
    let mut out = String::new();
    match encode(&mut out, &registry().lock()) {
        Ok(()) => out,
        Err(error) => format!("# metrics could not be encoded: {error}\n# EOF\n"),
    }
}
