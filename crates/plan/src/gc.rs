//! Which dependents follow an owner that is gone.
