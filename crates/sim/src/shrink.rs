//! The shortest history that still breaks the same invariant.
//!
//! The choices of a history do not depend on each other (each draws from a source of its own), so any of them can be
//! left out. Chunks are left out, halved until they are single choices (delta debugging).

use std::sync::Arc;

use crate::simulation::{Failure, Options, run};

/// Histories that may be played to find a shorter one.
const TRIES: usize = 1500;

/// A failure and the choices that are enough for it.
#[derive(Clone, Debug)]
pub struct Shortest {
    /// What goes wrong, and how it came to it.
    pub failure: Failure,
    /// The numbers of the choices.
    pub choices: Vec<usize>,
}

/// Makes a failing history as short as it can.
pub fn shrink(failure: &Failure, options: &Options) -> Shortest {
    let end = failure.at.map_or(options.steps, |at| at + 1);
    let all: Vec<usize> = match &options.only {
        Some(only) => only.iter().copied().filter(|number| *number < end).collect(),
        None => (0..end).collect(),
    };
    let mut shortest = Shortest { failure: failure.clone(), choices: all };
    let mut tries = TRIES;
    let mut chunk = shortest.choices.len().div_ceil(2).max(1);
    loop {
        let before = shortest.choices.len();
        let mut at = 0;
        while at < shortest.choices.len() && tries > 0 {
            tries -= 1;
            let left = shortest.choices.iter().enumerate();
            let left: Vec<_> = left.filter(|(i, _)| !(at..at + chunk).contains(i)).map(|(_, number)| *number).collect();
            match again(failure, options, &left) {
                Some(failure) => shortest = Shortest { failure, choices: left },
                None => at += chunk,
            }
        }
        if tries == 0 || (chunk == 1 && shortest.choices.len() == before) {
            break;
        }
        chunk = (chunk / 2).max(1);
    }
    // Once more, in words.
    let told = Options { trail: true, only: Some(Arc::from(shortest.choices.as_slice())), ..options.clone() };
    if let Err(failure) = run(failure.seed, &told) {
        shortest.failure = failure;
    }
    shortest
}

/// The same invariant is broken by these choices alone.
fn again(failure: &Failure, options: &Options, choices: &[usize]) -> Option<Failure> {
    let options = Options { only: Some(Arc::from(choices)), trail: false, ..options.clone() };
    run(failure.seed, &options).err().filter(|found| found.invariant == failure.invariant)
}

impl std::fmt::Display for Shortest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} --only {}", self.failure, ranges(&self.choices))
    }
}

/// Numbers as a list of ranges, such as 0-3,7.
pub fn ranges(numbers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let one = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(one).collect::<Vec<_>>().join(",")
}

/// Reads such a list.
///
/// # Errors
/// Which part is none.
pub fn read_ranges(text: &str) -> Result<Vec<usize>, String> {
    let mut numbers = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let one = |text: &str| text.parse().map_err(|_| format!("{part:?} is no number or range such as 3-7"));
        let (first, last): (usize, usize) = (one(first)?, one(last)?);
        numbers.extend(first..=last);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_as_ranges_and_read_back() {
        let numbers = vec![0, 1, 2, 5, 7, 8];
        assert_eq!(ranges(&numbers), "0-2,5,7-8");
        assert_eq!(read_ranges("0-2,5,7-8"), Ok(numbers));
        assert!(read_ranges("x").is_err());
        assert_eq!(read_ranges(""), Ok(Vec::new()));
    }
}
