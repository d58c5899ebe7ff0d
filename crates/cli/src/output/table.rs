//! Tables as kubectl prints them: columns three spaces apart, no borders, nothing cut.
//!
//! A table may grow while it is shown: rows that come later keep to the columns that are there, and widen them where
//! they must.

use std::fmt;

/// Between columns.
const GAP: usize = 3;

/// Columns and how wide they are so far.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    widths: Vec<usize>,
}

impl Columns {
    /// Makes room for a row.
    pub fn fit<S: AsRef<str>>(&mut self, row: &[S]) {
        for (at, cell) in row.iter().enumerate() {
            let width = cell.as_ref().chars().count();
            match self.widths.get_mut(at) {
                Some(widest) => *widest = width.max(*widest),
                None => self.widths.push(width),
            }
        }
    }

    /// A row as a line, without its end.
    pub fn line<S: AsRef<str>>(&self, row: &[S]) -> String {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            let cell = cell.as_ref();
            line.push_str(cell);
            if at + 1 < row.len() {
                let width = self.widths.get(at).copied().unwrap_or(0);
                let missing = width.saturating_sub(cell.chars().count());
                line.extend(std::iter::repeat_n(' ', missing + GAP));
            }
        }
        line.truncate(line.trim_end().len());
        line
    }
}

/// A table that is complete before it is shown.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this header.
    pub fn new<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self { rows: vec![header.into_iter().map(Into::into).collect()] }
    }

    /// Adds a row.
    pub fn push<S: Into<String>>(&mut self, row: impl IntoIterator<Item = S>) {
        self.rows.push(row.into_iter().map(Into::into).collect());
    }

    /// The columns, wide enough for all rows.
    pub fn columns(&self) -> Columns {
        let mut columns = Columns::default();
        self.rows.iter().for_each(|row| columns.fit(row));
        columns
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.columns();
        self.rows.iter().try_for_each(|row| writeln!(f, "{}", columns.line(row)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(["NAME", "READY", "STATUS"]);
        table.push(["web-0", "1/1", "Running"]);
        table.push(["a-long-name-0", "", "Pending"]);
        assert_eq!(
            table.to_string(),
            "NAME            READY   STATUS\nweb-0           1/1     Running\na-long-name-0           Pending\n"
        );
    }

    #[test]
    fn later_rows_keep_the_columns() {
        let mut columns = Columns::default();
        columns.fit(&["NAME", "AGE"]);
        assert_eq!(columns.line(&["a", "1s"]), "a      1s");
        columns.fit(&["longer", "1s"]);
        assert_eq!(columns.line(&["a", "1s"]), "a        1s");
    }
}
