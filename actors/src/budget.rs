//! How many tokens one device is lent at once: less after it ran out of memory, more again with success.
//!
//! Pure: the [`crate::ledger::Ledger`] keeps one per device, feeds it what happened and cuts batches to
//! what it allows. It never decides about sequences.

/// Full-sized batches that must succeed before a larger size is tried.
const GROW_AFTER: u32 = 8;
/// Rounds of [`GROW_AFTER`] at a settled size before the size that failed is tried again: what filled the
/// memory may be gone, and one failure in some 64 batches costs little.
const FORGET_AFTER: u32 = 8;
/// Share of the memory in use from which a device gets less: beyond it, allocators of drivers fail by
/// fragmentation.
pub const PRESSURE_MAX: f32 = 0.9;
/// By how many thousandths of the memory more must be in use for a budget to be made smaller once again.
const PRESSURE_STEP: u16 = 10;
/// The budget is settled when the next size would differ by less than this part of the full one.
const STEP: u32 = 32;
/// Smallest part of the full budget; below it a device is of no use, and its failures will retire it.
const FLOOR: u32 = 64;

/// The token budget of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBudget {
    full: u32,
    current: u32,
    /// Smallest size known not to fit; beyond `full` while none is.
    ceiling: u32,
    /// Largest size that fitted since the last surprise.
    good: u32,
    good_in_a_row: u32,
    rounds_settled: u32,
    /// Part of the memory in use, in thousandths, when the budget was last made smaller because of it; 0: it was not,
    /// or has grown since.
    pressure: u16,
    /// Whether it has run short since it last completed a batch of nearly the full size.
    ran_short: bool,
}

impl TokenBudget {
    /// A device that is trusted with the job's whole budget.
    pub fn new(full: u32) -> Self {
        let full = full.max(1);
        Self {
            full,
            current: full,
            ceiling: full.saturating_add(1),
            good: 0,
            good_in_a_row: 0,
            rounds_settled: 0,
            pressure: 0,
            ran_short: false,
        }
    }

    /// Begins with what an earlier session found to fit; it grows from there.
    pub fn remembered(mut self, tokens: u32) -> Self {
        self.current = tokens.clamp(self.floor(), self.full);
        self.ran_short = self.is_reduced();
        if self.ran_short {
            // Taken for settled: what was too much then is tried again only after a while.
            self.ceiling = self.current + 1;
        }
        self
    }

    /// The whole budget is this one from now on; what was learnt below it stays.
    pub fn limit(&mut self, full: u32) {
        let full = full.max(1);
        let was_whole = !self.is_reduced();
        let is_unlimited = self.ceiling > self.full;
        self.full = full;
        self.current = if was_whole { full } else { self.current.clamp(self.floor().min(full), full) };
        self.ceiling =
            if is_unlimited { full.saturating_add(1) } else { self.ceiling.min(full.saturating_add(1)) };
        // A larger budget has a higher floor, which may lie above what did not fit.
        self.ceiling = self.ceiling.max(self.current.saturating_add(1));
        self.good = self.good.min(full);
    }

    /// Most tokens of a batch of several sequences; a sequence alone may have more.
    pub fn tokens(&self) -> u32 {
        self.current
    }

    /// What a later session begins with: the largest size that is known to fit, not one that is being tried;
    /// `None` for a device that never ran short, or has shown since that the whole budget fits.
    pub fn to_remember(&self) -> Option<u32> {
        let known = if self.good > 0 { self.current.min(self.good) } else { self.current };
        self.ran_short.then_some(known)
    }

    /// Whether the device gets less than the job's budget.
    pub fn is_reduced(&self) -> bool {
        self.current < self.full
    }

    /// A batch of `tokens` did not fit.
    pub fn out_of_memory(&mut self, tokens: u32) {
        if tokens <= self.good {
            // What fitted before does not any more: nothing that was learnt holds.
            self.good = 0;
        }
        self.ceiling = tokens.clamp(self.floor() + 1, self.full.saturating_add(1));
        let retreat = if self.good > 0 { self.good } else { tokens / 2 };
        self.shrink_to(retreat);
    }

    /// A batch of `tokens` fitted, and left so little memory that the next one may not: `share` of it is in use.
    ///
    /// Where the last smaller budget has not helped, another one would not: others fill the memory, or what the engine
    /// keeps does.
    pub fn pressed(&mut self, tokens: u32, share: f32) {
        let share = (share.clamp(0.0, 1.0) * 1000.0) as u16;
        if self.pressure > 0 && share <= self.pressure + PRESSURE_STEP {
            self.good_in_a_row = 0;
            return;
        }
        self.pressure = share.max(1);
        let retreat = tokens.min(self.current) / 5 * 4;
        self.good = self.good.min(retreat);
        self.ceiling = self.ceiling.min(tokens.max(self.floor() + 1));
        self.shrink_to(retreat);
    }

    /// A batch of `tokens` was completed with memory to spare.
    pub fn completed(&mut self, tokens: u32) {
        if tokens < self.ceiling {
            self.good = self.good.max(tokens.min(self.full));
        }
        if u64::from(tokens) * 4 >= u64::from(self.full) * 3 {
            self.ran_short = false;
        }
        // A small batch tells nothing about a large one.
        if !self.is_reduced() || u64::from(tokens) * 4 < u64::from(self.current) * 3 {
            return;
        }
        self.good_in_a_row += 1;
        if self.good_in_a_row >= GROW_AFTER {
            self.good_in_a_row = 0;
            self.grow();
        }
    }

    fn grow(&mut self) {
        self.pressure = 0;
        let step = (self.ceiling - self.current) / 2;
        if self.ceiling > self.full {
            self.current = self.current.saturating_mul(2).min(self.full);
        } else if step > self.full / STEP {
            self.current += step;
        } else {
            self.rounds_settled += 1;
            if self.rounds_settled >= FORGET_AFTER {
                self.rounds_settled = 0;
                self.ceiling = self.ceiling.saturating_mul(2).min(self.full.saturating_add(1));
            }
        }
    }

    fn shrink_to(&mut self, tokens: u32) {
        self.current = tokens.min(self.current).clamp(self.floor(), self.full);
        self.ceiling = self.ceiling.max(self.current + 1);
        self.good_in_a_row = 0;
        self.rounds_settled = 0;
        self.ran_short = true;
    }

    fn floor(&self) -> u32 {
        (self.full / FLOOR).max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FULL: u32 = 16_384;

    /// Runs `batches` full-sized batches on a device on which only `fits` tokens fit; returns failures.
    fn work(budget: &mut TokenBudget, fits: u32, batches: u32) -> u32 {
        let mut failures = 0;
        for _ in 0..batches {
            let tokens = budget.tokens();
            if tokens <= fits {
                budget.completed(tokens);
            } else {
                budget.out_of_memory(tokens);
                failures += 1;
            }
        }
        failures
    }

    #[test]
    fn the_budget_settles_just_below_what_fits() {
        let mut budget = TokenBudget::new(FULL);
        assert!(work(&mut budget, 11_000, 100) <= 6);
        assert!((9_900..=11_000).contains(&budget.tokens()), "{budget:?}");
        assert!((9_900..=11_000).contains(&budget.to_remember().unwrap()), "{budget:?}");
        // Settled: hardly a failure any more.
        assert!(work(&mut budget, 11_000, 1000) <= 40, "{budget:?}");
    }

    #[test]
    fn the_budget_grows_back_when_the_memory_is_free_again() {
        let mut budget = TokenBudget::new(FULL);
        work(&mut budget, 2_000, 300);
        assert!(budget.tokens() <= 2_000);
        assert_eq!(work(&mut budget, FULL, 1000), 0);
        assert_eq!(budget.tokens(), FULL);
        assert!(!budget.is_reduced());
        assert_eq!(budget.to_remember(), None);
    }

    #[test]
    fn pressure_shrinks_before_anything_fails() {
        let mut budget = TokenBudget::new(FULL);
        budget.pressed(FULL, 0.91);
        assert_eq!(budget.tokens(), FULL / 5 * 4);
        budget.pressed(budget.tokens(), 0.93);
        assert!(budget.tokens() < FULL * 2 / 3);
    }

    #[test]
    fn a_limit_replaces_the_whole_budget_and_keeps_what_was_learnt() {
        let mut fresh = TokenBudget::new(FULL);
        fresh.limit(9_000);
        assert_eq!((fresh.tokens(), fresh.is_reduced()), (9_000, false));
        fresh.limit(FULL);
        assert_eq!(fresh.tokens(), FULL);
        let mut short = TokenBudget::new(FULL);
        work(&mut short, 2_000, 100);
        let before = short.tokens();
        short.limit(9_000);
        assert_eq!(short.tokens(), before);
        assert!(work(&mut short, 9_000, 1000) < 10);
        assert_eq!(short.tokens(), 9_000);
        short.limit(100);
        assert_eq!(short.tokens(), 100);
    }

    #[test]
    fn memory_that_others_fill_does_not_end_in_tiny_batches() {
        let mut budget = TokenBudget::new(FULL);
        for _ in 0..30 {
            budget.pressed(budget.tokens(), 0.93);
        }
        assert_eq!(budget.tokens(), FULL / 5 * 4);
        // It fills on.
        budget.pressed(budget.tokens(), 0.95);
        assert_eq!(budget.tokens(), FULL / 5 * 4 / 5 * 4);
        // With room again it grows; then less helps once more.
        for _ in 0..GROW_AFTER {
            budget.completed(budget.tokens());
        }
        let before = budget.tokens();
        budget.pressed(before, 0.92);
        assert!(budget.tokens() < before);
    }

    #[test]
    fn a_floor_that_rises_above_what_did_not_fit_stays_below_the_ceiling() {
        let mut short = TokenBudget::new(510);
        short.out_of_memory(0);
        short.limit(576);
        assert_eq!(short.tokens(), 9);
        for _ in 0..20 * GROW_AFTER {
            short.completed(9);
            assert!((9..=576).contains(&short.tokens()), "{short:?}");
        }
    }

    #[test]
    fn a_remembered_budget_is_kept_within_the_full_one() {
        assert_eq!(TokenBudget::new(1000).remembered(400).tokens(), 400);
        assert_eq!(TokenBudget::new(1000).remembered(4000).tokens(), 1000);
        assert_eq!(TokenBudget::new(1000).remembered(0).tokens(), 15);
    }

    proptest! {
        #[test]
        fn whatever_happens_the_budget_stays_usable(
            full in 1u32..40_000,
            events in prop::collection::vec((0u8..4, 0u32..50_000), 0..300),
        ) {
            let mut budget = TokenBudget::new(full);
            for (event, tokens) in events {
                let before = budget.tokens();
                match event {
                    3 => budget.limit(tokens.clamp(1, full)),
                    0 => {
                        budget.out_of_memory(tokens);
                        prop_assert!(budget.tokens() <= before);
                    }
                    1 => {
                        budget.pressed(tokens, 0.9 + tokens as f32 % 10.0 / 100.0);
                        prop_assert!(budget.tokens() <= before);
                    }
                    _ => {
                        budget.completed(tokens);
                        prop_assert!(budget.tokens() >= before);
                    }
                }
                prop_assert!(budget.tokens() >= 1 && budget.tokens() <= full);
            }
        }

        #[test]
        fn any_device_settles_after_a_few_failures(fits in 300u32..FULL) {
            let mut budget = TokenBudget::new(FULL);
            prop_assert!(work(&mut budget, fits, 200) <= 12, "{budget:?}");
            // It may be trying a larger one just now.
            prop_assert!(budget.good <= fits && budget.good >= fits / 2, "{budget:?}");
        }
    }
}
