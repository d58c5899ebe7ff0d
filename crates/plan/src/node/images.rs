//! Which images a node can do without.
//!
//! Nothing is removed as long as the disk has room. Above the high threshold, images that nobody uses go, the least
//! recently used first, until the disk would be below the low one. Never removed: what a container uses, what is pinned,
//! what cannot be pulled again, and what came only just now.

use jiff::{SignedDuration, Timestamp};

/// An image on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The runtime's id.
    pub id: String,
    /// Its bytes.
    pub size: u64,
    /// Whether a container of any state has it.
    pub in_use: bool,
    /// Whether it stays for another reason: pinned, the sandboxes' own, or imported by hand and in no registry.
    pub kept: bool,
    /// When it was first seen here.
    pub first_seen: Timestamp,
    /// When a container was last seen to have it; `first_seen` if none was.
    pub last_used: Timestamp,
}

/// The disk that holds the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// All bytes.
    pub capacity: u64,
    /// Free bytes.
    pub available: u64,
}

/// When images go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Percentage of the disk from which on images go; none go at 100.
    pub high: u8,
    /// Percentage of the disk at which it is enough.
    pub low: u8,
    /// Images stay at least this long.
    pub min_age: SignedDuration,
}

/// The images to remove, in this order.
pub fn expendable(images: &[Image], disk: Disk, bounds: Bounds, now: Timestamp) -> Vec<&Image> {
    let used = disk.capacity.saturating_sub(disk.available);
    let part = |percent: u8| (u128::from(disk.capacity) * u128::from(percent) / 100) as u64;
    if disk.capacity == 0 || bounds.high >= 100 || used < part(bounds.high) {
        return Vec::new();
    }
    let mut left = used.saturating_sub(part(bounds.low.min(bounds.high)));
    let mut candidates: Vec<_> = images
        .iter()
        .filter(|image| !image.in_use && !image.kept && now.duration_since(image.first_seen) >= bounds.min_age)
        .collect();
    candidates.sort_by(|a, b| (a.last_used, a.first_seen, &a.id).cmp(&(b.last_used, b.first_seen, &b.id)));
    let enough = |image: &&Image| {
        let wanted = left > 0;
        left = left.saturating_sub(image.size);
        wanted
    };
    candidates.into_iter().take_while(enough).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(minutes * 60).unwrap()
    }

    fn image(id: &str, size: u64, last_used: i64) -> Image {
        let (in_use, kept) = (false, false);
        Image { id: id.into(), size, in_use, kept, first_seen: at(0), last_used: at(last_used) }
    }

    fn removed(images: &[Image], available: u64) -> Vec<&str> {
        let bounds = Bounds { high: 85, low: 80, min_age: SignedDuration::from_mins(2) };
        let disk = Disk { capacity: 1000, available };
        expendable(images, disk, bounds, at(60)).into_iter().map(|image| image.id.as_str()).collect()
    }

    #[test]
    fn the_longest_unused_go_first_until_the_low_threshold_is_reached() {
        let images = [image("a", 30, 50), image("b", 30, 10), image("c", 30, 20)];
        assert_eq!(removed(&images, 151), [""; 0], "below the high threshold");
        assert_eq!(removed(&images, 150), ["b", "c"], "850 of 1000 used: 50 too many");
        assert_eq!(removed(&images, 0), ["b", "c", "a"], "all that there is");
    }

    #[test]
    fn what_is_used_or_kept_or_new_stays_however_full_the_disk_is() {
        let images = [
            Image { in_use: true, ..image("used", 100, 1) },
            Image { kept: true, ..image("pause", 100, 1) },
            Image { first_seen: at(59), ..image("new", 100, 59) },
        ];
        assert_eq!(removed(&images, 0), [""; 0]);
    }

    #[test]
    fn a_threshold_of_a_hundred_removes_nothing() {
        let bounds = Bounds { high: 100, low: 80, min_age: SignedDuration::ZERO };
        let disk = Disk { capacity: 1000, available: 0 };
        assert!(expendable(&[image("a", 1, 1)], disk, bounds, at(60)).is_empty());
    }
}
