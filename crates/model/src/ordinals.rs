//! Which ordinals a set has: the first so many from `start` on that are not reserved (ID-4).
//!
//! An *index* counts the ordinals that a set has, from 0: what `partition` means (UPD-2, D4). Without reserved ordinals
//! it is the distance from `start`.

use std::fmt;

use pb::objects::{IntOrString, StatefulSetSpec, int_or_string::Kind};

use crate::identity::Ordinal;

/// Some ordinals, as ranges: sorted, apart from each other, both ends included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OrdinalRanges(Vec<(u32, u32)>);

/// A text that names no ordinals.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRange {
    /// Not of the form.
    #[error("must be an ordinal such as 3, or a range such as \"5-7\"")]
    Form,
    /// The end lies before the beginning.
    #[error("must not end before it begins")]
    Backwards,
}

impl OrdinalRanges {
    /// Reads numbers and ranges; what names no ordinals is left out.
    pub fn of(items: &[IntOrString]) -> Self {
        Self::from_ranges(items.iter().filter_map(|item| Self::range(item).ok()))
    }

    /// Reads one number or range.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn range(item: &IntOrString) -> Result<(Ordinal, Ordinal), BadRange> {
        let one = |text: &str| Ordinal::parse(text.trim()).ok_or(BadRange::Form);
        match &item.kind {
            Some(Kind::IntValue(number)) => {
                let ordinal = u32::try_from(*number).map(Ordinal).map_err(|_| BadRange::Form)?;
                Ok((ordinal, ordinal))
            }
            Some(Kind::StringValue(text)) => {
                let (first, last) = text.split_once('-').unwrap_or((text, text));
                let (first, last) = (one(first)?, one(last)?);
                if first <= last { Ok((first, last)) } else { Err(BadRange::Backwards) }
            }
            None => Err(BadRange::Form),
        }
    }

    fn from_ranges(ranges: impl Iterator<Item = (Ordinal, Ordinal)>) -> Self {
        let mut ranges: Vec<_> = ranges.map(|(first, last)| (first.0, last.0)).collect();
        ranges.sort_unstable();
        let mut apart: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match apart.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => apart.push((first, last)),
            }
        }
        Self(apart)
    }

    /// Whether an ordinal is among them.
    pub fn contains(&self, ordinal: Ordinal) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&ordinal.0))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of them lie from `first` on and below `end`.
    fn count_between(&self, first: u32, end: u32) -> u32 {
        let within = self.0.iter().map(|(low, high)| (*low.max(&first), high.saturating_add(1).min(end)));
        within.map(|(low, end)| end.saturating_sub(low)).fold(0, u32::saturating_add)
    }
}

impl fmt::Display for OrdinalRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |(first, last): &(u32, u32)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        f.write_str(&self.0.iter().map(one).collect::<Vec<_>>().join(", "))
    }
}

/// The ordinals of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ordinals {
    /// The lowest that it may have.
    pub start: Ordinal,
    /// How many it has.
    pub count: u32,
    /// Those that it must not have.
    pub reserved: OrdinalRanges,
}

impl Ordinals {
    /// The ordinals that a spec asks for.
    pub fn of(spec: &StatefulSetSpec) -> Self {
        let numbering = spec.ordinals.clone().unwrap_or_default();
        let unsigned = |number: i32| u32::try_from(number).unwrap_or(0);
        Self {
            start: Ordinal(unsigned(numbering.start)),
            count: unsigned(spec.replicas.unwrap_or(1)),
            reserved: OrdinalRanges::of(&numbering.reserved),
        }
    }

    /// All of them, the lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Ordinal> + '_ {
        (0..self.count).map(|index| self.at(index))
    }

    /// The ordinal of an index. Past the last ordinal that there can be, that one.
    pub fn at(&self, index: u32) -> Ordinal {
        let mut ordinal = self.start.0.saturating_add(index);
        for (first, last) in &self.reserved.0 {
            if *last < self.start.0 {
                continue;
            }
            if *first > ordinal {
                break;
            }
            ordinal = ordinal.saturating_add(last - (*first).max(self.start.0)).saturating_add(1);
        }
        Ordinal(ordinal)
    }

    /// The index of an ordinal: how many the set could have before it. None if the set could never have it.
    pub fn index_of(&self, ordinal: Ordinal) -> Option<u32> {
        let distance = ordinal.0.checked_sub(self.start.0)?;
        let free = !self.reserved.contains(ordinal);
        free.then(|| distance - self.reserved.count_between(self.start.0, ordinal.0))
    }

    /// Whether the set has this ordinal.
    pub fn contains(&self, ordinal: Ordinal) -> bool {
        self.index_of(ordinal).is_some_and(|index| index < self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(items: &[&str]) -> OrdinalRanges {
        OrdinalRanges::of(&items.iter().map(|text| IntOrString::text(*text)).collect::<Vec<_>>())
    }

    fn ordinals(start: u32, count: u32, reserved: &[&str]) -> Ordinals {
        Ordinals { start: Ordinal(start), count, reserved: ranges(reserved) }
    }

    fn numbers(ordinals: &Ordinals) -> Vec<u32> {
        ordinals.iter().map(|ordinal| ordinal.0).collect()
    }

    #[test]
    fn reserved_ordinals_are_skipped() {
        assert_eq!(numbers(&ordinals(0, 4, &[])), [0, 1, 2, 3]);
        assert_eq!(numbers(&ordinals(2, 3, &["0-1"])), [2, 3, 4]);
        assert_eq!(numbers(&ordinals(0, 4, &["1", "3-4"])), [0, 2, 5, 6]);
        assert_eq!(numbers(&ordinals(3, 3, &["2-4", "6", "3"])), [5, 7, 8]);
    }

    #[test]
    fn an_index_leads_back_to_its_ordinal() {
        for reserved in [&["0"][..], &["1-3", "2-5"], &["7"], &["0-9"], &[]] {
            for start in 0..8 {
                let set = ordinals(start, 12, reserved);
                for index in 0..12 {
                    assert_eq!(set.index_of(set.at(index)), Some(index), "{set:?}");
                    assert!(set.contains(set.at(index)));
                }
                let all = numbers(&set);
                let others = (0..40).filter(|ordinal| !all.contains(ordinal));
                others.for_each(|ordinal| assert!(!set.contains(Ordinal(ordinal)), "{set:?} {ordinal}"));
            }
        }
    }

    #[test]
    fn ranges_say_what_is_wrong() {
        let read = |text: &str| OrdinalRanges::range(&IntOrString::text(text));
        assert_eq!(read("2-5"), Ok((Ordinal(2), Ordinal(5))));
        assert_eq!(read("5-2"), Err(BadRange::Backwards));
        assert_eq!(read("-2"), Err(BadRange::Form));
        assert_eq!(read("07"), Err(BadRange::Form));
        assert_eq!(OrdinalRanges::range(&IntOrString::int(-1)), Err(BadRange::Form));
        assert_eq!(ranges(&["5-7", "3", "4"]).to_string(), "3-7");
    }
}
