package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const sizeUnits = "KMGTPE" // each 1024 times the one before; K is 1024 bytes

// parseSize reads a number of bytes: digits and an optional unit K, M, G, T, P
// or E, in either case, alone or with iB: 10G = 10g = 10GiB = 10737418240. All
// units are powers of 1024; GB, which others read as a power of 1000, is
// refused rather than guessed. The result is exact, positive or zero.
func parseSize(s string) (int64, error) {
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	if digits == 0 {
		return 0, fmt.Errorf("%q is not a size; write for example 512M, 10G or 1T", s)
	}
	shift, err := unitShift(s[digits:])
	if err != nil {
		return 0, fmt.Errorf("%q is not a size: %w", s, err)
	}
	n, err := strconv.ParseUint(s[:digits], 10, 63)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is too large: the largest size is %d bytes", s, int64(math.MaxInt64))
	}
	return int64(n) << shift, nil
}

func unitShift(unit string) (int, error) {
	if unit == "" || unit == "B" {
		return 0, nil
	}
	i := strings.IndexByte(sizeUnits, unit[0]&^0x20)
	switch rest := unit[1:]; {
	case unit[0] == '.' || unit[0] == ',':
		return 0, fmt.Errorf("write a whole number of a smaller unit")
	case i < 0 || rest != "" && rest != "iB" && rest != "B":
		return 0, fmt.Errorf("the units are K, M, G, T, P and E (powers of 1024)")
	case rest == "B":
		return 0, fmt.Errorf("%s is ambiguous; write %siB (a power of 1024)", unit, unit[:1])
	}
	return 10 * (i + 1), nil
}

// sizeText is n bytes for people: "0 B", "512 B", "10 GiB", "1.5 MiB", rounded
// to one decimal.
func sizeText(n int64) string {
	const k = 1024
	if n < k {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/k, 0
	for f >= k-0.05 && i < len(sizeUnits)-1 {
		f /= k
		i++
	}
	s := strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0")
	return s + " " + sizeUnits[i:i+1] + "iB"
}

// ageText is a span of time for people, rounded down to its largest unit:
// "0s", "59s", "12m", "3h", "5d". A negative one is not known: "-".
func ageText(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case seconds < 0 || math.IsNaN(seconds):
		return "-"
	case seconds > math.MaxInt64/1e9: // d overflowed
		return ">290y"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}
