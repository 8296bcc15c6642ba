//! Dates of the proleptic Gregorian calendar, from and to seconds since 1970.

/// Seconds of a day.
pub(crate) const DAY_S: i64 = 86_400;

/// A date and a time of day. Fields may leave their ranges: `to_unix` carries them over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DateTime {
    pub year: i64,
    /// 1 to 12
    pub month: i64,
    /// 1 to 31
    pub day: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
}

impl DateTime {
    /// The date of a Unix time in seconds.
    pub(crate) fn from_unix(seconds: i64) -> Self {
        let of_day = seconds.rem_euclid(DAY_S);
        // Years begin in March here, so that the leap day is a year's last; eras have 400 years.
        let days = seconds.div_euclid(DAY_S) + 719_468;
        let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        Self {
            year: year_of_era + era * 400 + carry,
            month,
            day: day_of_year - (153 * ((month + 9) % 12) + 2) / 5 + 1,
            hour: of_day / 3_600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }

    /// The Unix time of this date in seconds.
    pub(crate) fn to_unix(self) -> i64 {
        let months = self.year * 12 + self.month - 1;
        // Months since March of year 0.
        let shifted = months - 2;
        let (year, month) = (shifted.div_euclid(12), shifted.rem_euclid(12));
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * month + 2) / 5 + self.day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        days * DAY_S + self.hour * 3_600 + self.minute * 60 + self.second
    }

    /// The day of the week, 1 for Sunday as the MC146818 counts.
    pub(crate) fn weekday(self) -> i64 {
        (self.to_unix().div_euclid(DAY_S) + 4).rem_euclid(7) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let date = |year, month, day| DateTime { year, month, day, hour: 0, minute: 0, second: 0 };
        for (unix, expected, weekday) in [
            (0, date(1970, 1, 1), 5),
            (951_782_400, date(2000, 2, 29), 3),
            (951_868_800, date(2000, 3, 1), 4),
            (4_102_444_800, date(2100, 1, 1), 6),
            (-86_400, date(1969, 12, 31), 4),
        ] {
            assert_eq!(DateTime::from_unix(unix), expected);
            assert_eq!(expected.to_unix(), unix);
            assert_eq!(expected.weekday(), weekday);
        }
    }

    #[test]
    fn round_trip_over_four_centuries() {
        let mut seconds = -10_000 * DAY_S;
        while seconds < 150_000 * DAY_S {
            assert_eq!(DateTime::from_unix(seconds).to_unix(), seconds);
            seconds += 12_345 * 61;
        }
    }
}
