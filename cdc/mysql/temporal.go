package mysql

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
)

// moment is a date, or a date and a time, as MySQL writes them: it may be zero or
// a day that does not exist.
type moment struct {
	year, month, day, hour, minute, second, micro int
}

// clock is a TIME: a span of up to 838 hours either way.
type clock struct {
	negative                    bool
	hour, minute, second, micro int
}

// moment reads a value of the log. It reports whether the bytes can be one.
func (c *column) moment(v []byte) (m moment, ok bool) {
	switch c.log.typ {
	case gomysql.MYSQL_TYPE_DATE:
		u := int(littleEndian(v))
		return moment{year: u >> 9, month: u >> 5 & 15, day: u & 31}, u>>9 <= 9999
	case gomysql.MYSQL_TYPE_DATETIME: // of MySQL 5.5 and before: the digits as a number
		u := binary.LittleEndian.Uint64(v)
		d, t := int(u/1e6), int(u%1e6)
		return moment{d / 10000, d / 100 % 100, d % 100, t / 10000, t / 100 % 100, t % 100, 0}, u <= 99991231235959
	case gomysql.MYSQL_TYPE_DATETIME2:
		u := int64(bigEndian(v[:5])) - 1<<39
		ymd, hms := int(u>>17), int(u&(1<<17-1))
		return moment{ymd >> 5 / 13, ymd >> 5 % 13, ymd & 31, hms >> 12, hms >> 6 & 63, hms & 63, micros(v[5:])}, u >= 0 && ymd>>5/13 <= 9999
	case gomysql.MYSQL_TYPE_TIMESTAMP:
		return civil(binary.LittleEndian.Uint32(v), 0), true
	}
	return civil(binary.BigEndian.Uint32(v), micros(v[4:])), true
}

// micros reads the fraction of a second behind a value: one byte for each two
// digits.
func micros(v []byte) int {
	u := int(bigEndian(v))
	switch len(v) {
	case 1:
		u *= 10000
	case 2:
		u *= 100
	}
	return u
}

// civil turns seconds since 1970 into a date and time in UTC. 0 is the zero date.
func civil(seconds uint32, micro int) moment {
	if seconds == 0 {
		return moment{micro: micro}
	}
	days, rest := int(seconds/86400), int(seconds%86400)
	// Years begin on March 1, so that the day that comes and goes is the last one;
	// 719468 days are from 0000-03-01 to 1970-01-01, 146097 are in 400 years.
	days += 719468
	era, inEra := days/146097, days%146097
	year := (inEra - inEra/1460 + inEra/36524 - inEra/146096) / 365
	inYear := inEra - (365*year + year/4 - year/100)
	month := (5*inYear + 2) / 153 // from March, 0
	m := moment{year: era*400 + year, month: month + 3, day: inYear - (153*month+2)/5 + 1,
		hour: rest / 3600, minute: rest / 60 % 60, second: rest % 60, micro: micro}
	if month >= 10 {
		m.month -= 12
		m.year++
	}
	return m
}

// clock reads a value of the log.
func (c *column) clock(v []byte) (t clock) {
	if c.log.typ == gomysql.MYSQL_TYPE_TIME { // of MySQL 5.5 and before: the digits as a number
		n := int(int32(uint32(littleEndian(v))<<8) >> 8)
		if n < 0 {
			t.negative, n = true, -n
		}
		t.hour, t.minute, t.second = n/10000, n/100%100, n%100
		return t
	}
	// Counted from the middle of what the bytes can hold, fraction included.
	n := int64(bigEndian(v)) - 1<<(8*len(v)-1)
	if n < 0 {
		t.negative, n = true, -n
	}
	fraction := len(v) - 3
	hms := int(n >> (8 * fraction))
	t.hour, t.minute, t.second = hms>>12, hms>>6&63, hms&63
	if fraction > 0 {
		var rest [8]byte
		binary.BigEndian.PutUint64(rest[:], uint64(n))
		t.micro = micros(rest[8-fraction:])
	}
	return t
}

// parseMoment reads the text of a SELECT: "2026-11-22", with or without " 08:15:30"
// and a fraction.
func parseMoment(s string) (m moment, err error) {
	if len(s) != 10 && len(s) < 19 || len(s) == 20 || len(s) > 26 {
		return m, fmt.Errorf("%q is no date", s)
	}
	ok := true
	number := func(from, to int) (n int) {
		for _, b := range []byte(s[from:to]) {
			ok = ok && b >= '0' && b <= '9'
			n = n*10 + int(b-'0')
		}
		return n
	}
	m.year, m.month, m.day = number(0, 4), number(5, 7), number(8, 10)
	if len(s) >= 19 {
		m.hour, m.minute, m.second = number(11, 13), number(14, 16), number(17, 19)
	}
	if len(s) > 20 {
		m.micro = number(20, len(s))
		for range 26 - len(s) {
			m.micro *= 10
		}
	}
	if !ok {
		return m, fmt.Errorf("%q is no date", s)
	}
	return m, nil
}

// parseClock reads the text of a SELECT: "-838:59:59", with or without a fraction.
func parseClock(s string) (t clock, err error) {
	digits, negative := strings.CutPrefix(s, "-")
	digits, fraction, _ := strings.Cut(digits, ".")
	hour, rest, _ := strings.Cut(digits, ":")
	minute, second, _ := strings.Cut(rest, ":")
	t.negative = negative
	fraction += "000000"[min(len(fraction), 6):]
	for _, part := range []struct {
		text string
		to   *int
	}{{hour, &t.hour}, {minute, &t.minute}, {second, &t.second}, {fraction, &t.micro}} {
		if *part.to, err = strconv.Atoi(part.text); err != nil {
			return t, fmt.Errorf("%q is no time", s)
		}
	}
	return t, nil
}

// exists reports whether m names a day that exists.
func (m *moment) exists() bool {
	return m.month >= 1 && m.month <= 12 && m.day >= 1 && m.day <= daysIn(m.year, m.month)
}

func daysIn(year, month int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// appendMoment appends m in ISO 8601, with the declared number of digits of a
// second. A day that does not exist follows the policy.
func (c *column) appendMoment(dst []byte, m moment) ([]byte, error) {
	if !m.exists() {
		switch c.zeroDates {
		case zeroStop:
			return dst, fmt.Errorf("the date %04d-%02d-%02d is zero or does not exist; mend the row, or set source.zero_dates to as_null or as_text", m.year, m.month, m.day)
		case zeroNull:
			return append(dst, "null"...), nil
		}
	}
	dst = append(dst, '"')
	dst = append2(dst, m.year/100)
	dst = append2(dst, m.year%100)
	dst = append2(append(dst, '-'), m.month)
	dst = append2(append(dst, '-'), m.day)
	if c.form == formDate {
		return append(dst, '"'), nil
	}
	dst = append2(append(dst, 'T'), m.hour)
	dst = append2(append(dst, ':'), m.minute)
	dst = append2(append(dst, ':'), m.second)
	dst = appendFraction(dst, m.micro, c.fraction)
	if c.form == formStamp {
		dst = append(dst, 'Z')
	}
	return append(dst, '"'), nil
}

// appendTime appends t as MySQL prints it.
func (c *column) appendTime(dst []byte, t clock) []byte {
	dst = append(dst, '"')
	if t.negative {
		dst = append(dst, '-')
	}
	if t.hour >= 100 {
		dst = append(dst, '0'+byte(t.hour/100%10))
	}
	dst = append2(dst, t.hour%100)
	dst = append2(append(dst, ':'), t.minute)
	dst = append2(append(dst, ':'), t.second)
	dst = appendFraction(dst, t.micro, c.fraction)
	return append(dst, '"')
}

const digits2 = "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748495051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899"

// append2 appends the last two digits of n.
func append2(dst []byte, n int) []byte {
	n %= 100
	return append(dst, digits2[2*n], digits2[2*n+1])
}

// appendFraction appends the first digits of a fraction of a second.
func appendFraction(dst []byte, micro, digits int) []byte {
	if digits == 0 {
		return dst
	}
	dst = append(dst, '.')
	at := len(dst)
	dst = append2(dst, micro/10000)
	dst = append2(dst, micro/100)
	dst = append2(dst, micro)
	return dst[:at+digits]
}
