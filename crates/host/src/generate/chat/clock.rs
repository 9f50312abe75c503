//! The date in a template: `strftime_now`.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `datetime.strftime` in the C locale and in UTC. A directive that is not known stays as it is.
///
/// # Errors
/// The format is longer than any honest one.
pub(super) fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    if format.len() > 1024 {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "strftime_now: the format is too long",
        ));
    }
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let moment = Moment::of(seconds);
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut kind = letters.next();
        let is_short = kind == Some('-');
        if is_short {
            kind = letters.next();
        }
        let start = out.len();
        let known = kind.is_some_and(|kind| moment.write(&mut out, kind));
        if !known {
            out.push('%');
            out.extend(is_short.then_some('-').into_iter().chain(kind));
        } else if is_short {
            let zeros = out.get(start..).map_or(0, |text| {
                text.len() - text.trim_start_matches('0').len().max(1).min(text.len())
            });
            out.drain(start..start + zeros);
        }
    }
    Ok(out)
}

/// A moment, taken apart.
struct Moment {
    year: i64,
    month: usize,
    day: u64,
    /// From 1.
    day_of_year: u64,
    /// From Sunday.
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    /// Seconds since 1970. The calendar from day numbers: years start in March, so that the leap
    /// day is a year's last, and 400 of them have 146,097 days.
    fn of(seconds: u64) -> Self {
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        let shifted = days + 719_468;
        let (era, in_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (in_era - in_era / 1_460 + in_era / 36_524 - in_era / 146_096) / 365;
        let in_year = in_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * in_year + 2) / 153;
        let day = in_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = (year_of_era + era * 400) as i64 + i64::from(month <= 2);
        let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
        let january =
            if in_year >= 306 { in_year - 306 } else { in_year + 59 + u64::from(is_leap) };
        Self {
            year,
            month: month as usize,
            day,
            day_of_year: january + 1,
            weekday: ((days + 4) % 7) as usize,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }

    /// Writes what the directive `kind` stands for; `false` if it is not known.
    fn write(&self, out: &mut String, kind: char) -> bool {
        let month = MONTHS.get(self.month.wrapping_sub(1)).copied().unwrap_or_default();
        let weekday = DAYS.get(self.weekday).copied().unwrap_or_default();
        let short = |name: &'static str| name.get(..3).unwrap_or(name);
        let hour = (self.hour + 11) % 12 + 1;
        let half = if self.hour < 12 { "AM" } else { "PM" };
        let Self { year, day, hour: hour24, minute, second, .. } = self;
        let n = self.month;
        let written = match kind {
            'Y' => write!(out, "{year:04}"),
            'y' => write!(out, "{:02}", year % 100),
            'm' => write!(out, "{n:02}"),
            'd' => write!(out, "{day:02}"),
            'e' => write!(out, "{day:2}"),
            'B' => write!(out, "{month}"),
            'b' | 'h' => write!(out, "{}", short(month)),
            'A' => write!(out, "{weekday}"),
            'a' => write!(out, "{}", short(weekday)),
            'w' => write!(out, "{}", self.weekday),
            'u' => write!(out, "{}", if self.weekday == 0 { 7 } else { self.weekday }),
            'j' => write!(out, "{:03}", self.day_of_year),
            'H' => write!(out, "{hour24:02}"),
            'I' => write!(out, "{hour:02}"),
            'M' => write!(out, "{minute:02}"),
            'S' => write!(out, "{second:02}"),
            'f' => write!(out, "000000"),
            'p' => write!(out, "{half}"),
            'F' => write!(out, "{year:04}-{n:02}-{day:02}"),
            'T' | 'X' => write!(out, "{hour24:02}:{minute:02}:{second:02}"),
            'R' => write!(out, "{hour24:02}:{minute:02}"),
            'D' | 'x' => write!(out, "{n:02}/{day:02}/{:02}", year % 100),
            'c' => write!(
                out,
                "{} {} {day:2} {hour24:02}:{minute:02}:{second:02} {year}",
                short(weekday),
                short(month)
            ),
            'z' | 'Z' => Ok(()),
            'n' => out.write_char('\n'),
            't' => out.write_char('\t'),
            '%' => out.write_char('%'),
            _ => return false,
        };
        written.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Expectations made with Python's `datetime.fromtimestamp(s, tz=None).strftime` under TZ=UTC.
    #[test]
    fn dates_are_written_as_python_does() {
        let check = |seconds: u64, format: &str, expect: &str| {
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(strftime(format, now).unwrap(), expect, "{seconds} {format}");
        };
        check(0, "%d %b %Y, %A", "01 Jan 1970, Thursday");
        check(951_782_400, "%Y-%m-%d %j %a", "2000-02-29 060 Tue");
        check(978_220_800, "%F %j", "2000-12-31 366");
        check(1_077_926_399, "%F %T %j", "2004-02-27 23:59:59 058");
        check(1_732_579_200, "%d %b %Y", "26 Nov 2024");
        check(1_709_164_800, "%B %-d, %y %%", "February 29, 24 %");
        check(1_709_283_661, "%I:%M:%S %p %H %-I", "09:01:01 AM 09 9");
        check(1_709_251_200, "%e %-m %-H %q %-q %", " 1 3 0 %q %-q %");
        check(4_102_444_799, "%F %w %u %c", "2099-12-31 4 4 Thu Dec 31 23:59:59 2099");
    }
}
