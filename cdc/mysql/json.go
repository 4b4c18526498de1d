package mysql

import (
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// appendJSON appends a JSON text in the one form that rows have: without white
// space between tokens, and doubles in their shortest form. The server's own text
// and the one decoded from the log differ in just these two. Keys keep their
// order, strings and integers their bytes.
func appendJSON(dst, s []byte) []byte {
	dst = slices.Grow(dst, len(s))
	for i := 0; i < len(s); {
		switch b := s[i]; {
		case b == '"':
			end := i + 1
			for s[end] != '"' {
				if s[end] == '\\' {
					end++
				}
				end++
			}
			dst = append(dst, s[i:end+1]...)
			i = end + 1
		case b == ' ' || b == '\n' || b == '\t' || b == '\r':
			i++
		case b == '-' || b >= '0' && b <= '9':
			end := i + 1
			for end < len(s) && strings.IndexByte("0123456789+-.eE", s[end]) >= 0 {
				end++
			}
			dst = appendNumber(dst, string(s[i:end]))
			i = end
		default:
			dst = append(dst, b)
			i++
		}
	}
	return dst
}

// appendNumber appends a number of a JSON text. A DECIMAL inside the JSON that is
// no double keeps all its digits.
func appendNumber(dst []byte, s string) []byte {
	if strings.IndexAny(s, ".eE") < 0 {
		return append(dst, s...)
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || len(s) > 18 && !exactly(strings.Clone(s), f) {
		return append(dst, s...)
	}
	return appendJSONDouble(dst, f)
}

func appendJSONDouble(dst []byte, f float64) []byte {
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		return strconv.AppendFloat(dst, f, 'e', -1, 64)
	}
	start := len(dst)
	dst = strconv.AppendFloat(dst, f, 'f', -1, 64)
	for _, b := range dst[start:] {
		if b == '.' {
			return dst
		}
	}
	return append(dst, '.', '0') // a double stays one
}

// exactly reports whether s is a way to write f: its value to the last digit, or
// the shortest text that reads back as f.
func exactly(s string, f float64) bool {
	if mantissa, _, _ := strings.Cut(strings.ToLower(s), "e"); len(strings.Trim(mantissa, "-0.")) <= 18 {
		return true
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return false
	}
	exact := new(big.Rat).SetFloat64(f)
	return exact != nil && r.Cmp(exact) == 0
}
