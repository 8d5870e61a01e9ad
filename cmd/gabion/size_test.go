package main

import (
	"fmt"
	"math"
	"math/big"
	"strings"
	"testing"
)

func TestParseSizeIsExact(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "512B": 512, "1K": 1 << 10, "512M": 512 << 20, "10G": 10 << 30, "10g": 10 << 30,
		"1T": 1 << 40, "1GiB": 1 << 30, "3P": 3 << 50, "7E": 7 << 60,
		"9223372036854775807": math.MaxInt64, "8388607T": 8388607 << 40, "0007K": 7168,
	} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestParseSizeRefusesWhatItWouldHaveToGuess(t *testing.T) {
	for _, s := range []string{"", "G", "-1", "+1", " 1", "1 ", "1 G", "1.5G", "1,5G", "1GB", "1Gi", "1GIB", "1X", "0x10",
		"1e3", "1_000", "٣G", "9223372036854775808", "8E", "8388608T", "18446744073709551616", "99999999999999999999E"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("parseSize(%q) = %d; want an error", s, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"10G", "9223372036854775807", "8E", "1GiB", "00", "1GB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseSize(s)
		if err != nil {
			if got != 0 || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("%q", s)) {
				t.Fatalf("parseSize(%q) = %d, %v: an error must name the text", s, got, err)
			}
			return
		}
		digits := strings.TrimRight(s, "KMGTPEkmgtpeiB")
		want, _ := new(big.Int).SetString(digits, 10)
		if u := strings.TrimSuffix(strings.TrimSuffix(s[len(digits):], "B"), "i"); u != "" {
			power := strings.Index(sizeUnits, strings.ToUpper(u)) + 1
			want.Lsh(want, uint(10*power))
		}
		if !want.IsInt64() || want.Int64() != got {
			t.Fatalf("parseSize(%q) = %d; exact is %v", s, got, want)
		}
	})
}

func TestSizeText(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 30: "10 GiB", 1<<20 - 1: "1 MiB", 1000 << 10: "1000 KiB",
		math.MaxInt64: "8 EiB",
	} {
		if got := sizeText(n); got != want {
			t.Errorf("sizeText(%d) = %q; want %q", n, got, want)
		}
	}
}

func TestAgeText(t *testing.T) {
	for s, want := range map[float64]string{
		-1: "-", 0: "0s", 59.9: "59s", 60: "1m", 7199: "1h", 47 * 3600: "47h", 48 * 3600: "2d", 1e300: ">290y",
	} {
		if got := ageText(s); got != want {
			t.Errorf("ageText(%v) = %q; want %q", s, got, want)
		}
	}
}
