// Package nearest finds the name that a misspelt one most likely stood for.
package nearest

import "strings"

// Name returns the one of names that takes the fewest letters to add, drop or
// change to become name, or "" when none is near. Upper case counts as lower
// case and a hyphen as an underscore.
func Name(name string, names []string) string {
	best, least := "", max(2, len(name)/3)+1
	for _, candidate := range names {
		if d := distance(fold.Replace(strings.ToLower(name)), fold.Replace(candidate)); d < least {
			best, least = candidate, d
		}
	}
	return best
}

var fold = strings.NewReplacer("-", "_")

func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
