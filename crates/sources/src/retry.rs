//! How long to wait before something is tried again.

use std::time::{Duration, SystemTime};

/// Failures in a row, without one byte between them, that end a download.
pub(crate) const MAX_FAILURES: u32 = 8;
/// Longest that a server's own wish to wait is followed.
const MAX_WISH: Duration = Duration::from_secs(120);
const LONGEST: Duration = Duration::from_secs(20);
/// Tests of what goes wrong don't wait for it.
const SHORTEST: Duration = Duration::from_micros(if cfg!(test) { 100 } else { 250_000 });

/// The wait after failure number `n_failures` (from 1): doubled each time, half of it by chance, so
/// that many who failed together do not come back together. A server's wish goes before, if longer.
pub(crate) fn wait(n_failures: u32, wish: Option<Duration>) -> Duration {
    let doubled = SHORTEST.saturating_mul(1 << n_failures.saturating_sub(1).min(16)).min(LONGEST);
    let wait = doubled.mul_f64(0.5 + 0.5 * chance());
    wish.map_or(wait, |wish| wish.min(MAX_WISH).max(wait))
}

/// A number from 0 to 1 that differs between processes and moments; nothing more is needed of it.
fn chance() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let number = RandomState::new().hash_one(SystemTime::now());
    (number >> 11) as f64 / (1_u64 << 53) as f64
}

/// A `Retry-After` header: seconds, or a date.
pub(crate) fn retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let then = httpdate::parse_http_date(value).ok()?;
    Some(then.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_bounded() {
        for n_failures in [1, 2, 5, 8, 100, u32::MAX] {
            let wait = wait(n_failures, None);
            assert!(wait >= SHORTEST / 2 && wait <= LONGEST, "{n_failures}: {wait:?}");
        }
        assert!(wait(8, None) > wait(1, None));
        assert_eq!(wait(1, Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(wait(1, Some(Duration::from_secs(1 << 40))), MAX_WISH);
    }

    #[test]
    fn a_servers_wish_is_read_in_both_forms() {
        assert_eq!(retry_after(" 3 "), Some(Duration::from_secs(3)));
        assert_eq!(retry_after("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(retry_after("-1"), None);
        assert_eq!(retry_after("soon"), None);
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let later = SystemTime::now() + Duration::from_secs(60);
        let wait = retry_after(&httpdate::fmt_http_date(later)).unwrap();
        assert!(wait > Duration::from_secs(50) && wait <= Duration::from_secs(60), "{wait:?}");
    }
}
