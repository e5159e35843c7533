//! Moments as people write them, in UTC: a report is read elsewhere than where it was made.

/// Seconds of a day.
const DAY_S: u64 = 86_400;

/// `1795295703` as `2026-11-21 21:15 UTC`.
pub(super) fn utc(unix_s: u64) -> String {
    let (year, month, day) = civil(unix_s / DAY_S);
    let minutes = unix_s % DAY_S / 60;
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

/// Year, month and day of a day since 1970-01-01, by the algorithm of Howard Hinnant (`civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    // Beyond the year 9999 the time is damaged anyway.
    let days = days.min(2_932_896) + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_as_the_calendar_does() {
        for (unix_s, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_399, "2000-02-28 23:59 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_795_295_703, "2026-11-21 21:15 UTC"),
            (4_102_444_799, "2099-12-31 23:59 UTC"),
            (u64::MAX, "9999-12-31 07:00 UTC"),
        ] {
            assert_eq!(utc(unix_s), text);
        }
    }
}
