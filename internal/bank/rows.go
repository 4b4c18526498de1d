package bank

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

var (
	questionColumns = []string{"id", "slug", "title", "statement", "difficulty", "status", "labels", "points",
		"settings", "author_id", "views", "published_at", "created_at", "updated_at"}
	linkColumns = []string{"question_id", "tag_id", "position", "added_at"}
	caseColumns = []string{"question_id", "name", "input", "expected", "weight", "hidden", "time_limit_ms",
		"memory_mb", "grace", "introduced"}

	difficulties = []string{"easy", "medium", "hard"}
	labels       = []string{"array", "string", "graph", "tree", "dynamic-programming", "greedy", "math", "geometry"}
	tagNames     = []string{"arrays", "strings", "hash maps", "two pointers", "sliding window", "binary search",
		"sorting", "stacks", "queues", "linked lists", "trees", "tries", "heaps", "graphs", "shortest paths",
		"union find", "recursion", "backtracking", "dynamic programming", "greedy", "bit manipulation",
		"number theory", "combinatorics", "geometry", "simulation", "matrices", "intervals", "prefix sums",
		"string matching", "parsing", "concurrency", "caching", "randomised", "game theory", "probability",
		"C++ / STL", "Python “idioms”", "日本語の問題", "naïve → optimal", "interview 🎯"}

	tasks = []struct{ verb, noun, result string }{
		{"Find", "the longest stretch", "its length"},
		{"Count", "the pairs", "how many there are modulo 1,000,000,007"},
		{"Return", "the smallest missing element", "that element, or -1 when there is none"},
		{"Merge", "the overlapping intervals", "the merged intervals in ascending order"},
		{"Compute", "the cheapest route", "its total cost"},
		{"Reconstruct", "the original order", "any valid order, or an empty list"},
		{"Partition", "the items into two groups", "the least difference between the two sums"},
		{"Decide whether one can reach", "the last cell", "true or false"},
		{"Rank", "the players", "the ranking, ties broken by name"},
		{"Compress", "the message", "the shortest encoding"},
	}
	settings = []struct{ place, given string }{
		{"in a rotated array", "an array `nums` of n distinct integers that was sorted and then rotated"},
		{"on a grid", "an m × n grid in which `#` is a wall and `.` is open ground"},
		{"in a stream of events", "a list of events, each with a start, an end and a weight"},
		{"in a weighted graph", "a graph of n nodes and a list `edges` of triples (from, to, cost)"},
		{"over a circular street", "the values of the houses along a circular street"},
		{"in a binary tree", "the root of a binary tree whose nodes hold integers"},
		{"among log lines", "the lines of a server's log, each of the form \"<time>\\t<level>\\t<text>\""},
		{"in a deck of cards", "a shuffled deck, given as a string such as \"7♠ K♥ 2♦\""},
		{"between two words", "two words `a` and `b` of lower-case letters"},
		{"in a warehouse", "the shelves of a warehouse and the orders of one day"},
	}
	twists = []string{
		"Elements may repeat, but no index may be used twice.",
		"You may change at most k of them beforehand.",
		"The input does not fit into memory, so read it only once.",
		"Negative values are allowed, and so is an empty input.",
		"Several queries follow; answer each in O(log n).",
		"A naïve O(n²) solution passes the samples and times out on the hidden cases.",
		"It's enough to be right with a probability of 99.9 %.",
		"Use no more than O(1) additional space.",
	}
	limits = []string{"1 ≤ n ≤ 10^5", "1 ≤ m, n ≤ 500", "-10^9 ≤ value ≤ 10^9", "0 ≤ k ≤ n", "the graph is connected",
		"all words are shorter than 2,000 letters", "answers fit into 64 bits"}
)

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }

type question struct {
	id                                 uint64
	slug, title, statement             string
	difficulty, status, labels, points string
	settings                           string
	author                             int
	views                              uint32
	published                          any // nil for a draft
	created, updated                   string
}

func newQuestion(rng *rand.Rand, id uint64) question {
	task, place := pick(rng, tasks), pick(rng, settings)
	created := time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rng.Int64N(5*365*24*3600*1e6)) * time.Microsecond)
	q := question{
		id:         id,
		title:      task.verb + " " + task.noun + " " + place.place,
		statement:  statement(rng, task, place),
		difficulty: pick(rng, difficulties),
		status:     "draft",
		labels:     someLabels(rng),
		points:     points(rng),
		settings:   settingsJSON(rng),
		author:     1 + rng.IntN(400),
		views:      uint32(rng.IntN(200_000)),
		created:    micros(created),
		updated:    micros(created.Add(time.Duration(rng.IntN(90*24*3600*1e6)) * time.Microsecond)),
	}
	slug := strings.NewReplacer(" ", "-", "'", "").Replace(strings.ToLower(q.title))
	q.slug = fmt.Sprintf("%s-%08x", slug, rng.Uint32()) + fmt.Sprintf("-%d", id)
	if rng.IntN(4) > 0 {
		q.status = "published"
		q.published = micros(created.Add(time.Duration(rng.IntN(30*24*3600*1e6)) * time.Microsecond))
	}
	return q
}

func (q question) row() []any {
	return []any{q.id, q.slug, q.title, q.statement, q.difficulty, q.status, q.labels, q.points, q.settings,
		q.author, q.views, q.published, q.created, q.updated}
}

func statement(rng *rand.Rand, task struct{ verb, noun, result string }, place struct{ place, given string }) string {
	var b strings.Builder
	fmt.Fprintf(&b, "You are given %s. %s %s, and return %s.\n\n", place.given, task.verb, task.noun, task.result)
	for range 1 + rng.IntN(3) {
		b.WriteString(pick(rng, twists) + " ")
	}
	b.WriteString("\n\nConstraints\n")
	for range 2 + rng.IntN(3) {
		b.WriteString("  • " + pick(rng, limits) + "\n")
	}
	n := 4 + rng.IntN(8)
	fmt.Fprintf(&b, "\nExample\n  input:  %s\n  output: %d\n", numbers(rng, n), rng.IntN(100))
	return b.String()
}

func numbers(rng *rand.Rand, n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprint(rng.IntN(2000) - 1000)
	}
	return "[" + strings.Join(parts, ", ") + "]"
}

func someLabels(rng *rand.Rand) string {
	var some []string
	for _, l := range labels {
		if rng.IntN(4) == 0 {
			some = append(some, l)
		}
	}
	return strings.Join(some, ",")
}

func points(rng *rand.Rand) string { return fmt.Sprintf("%d.%02d", rng.IntN(500), rng.IntN(100)) }

func settingsJSON(rng *rand.Rand) string {
	return fmt.Sprintf(`{"checker": %q, "languages": ["go", "python", "c++"], "limits": {"time_ms": %d, "memory_mb": %d}, "partial": %t, "penalty": %.2f, "note": null, "hint": "say \"why\", not only \\\"what\\\" – ☕"}`,
		pick(rng, []string{"exact", "tokens", "float", "custom"}), 500+rng.IntN(40)*100, 64<<rng.IntN(4), rng.IntN(2) == 0, rng.Float64())
}

func tagRow(rng *rand.Rand, id uint32, name string) []any {
	var description, first any
	if rng.IntN(4) > 0 {
		description = "Questions about " + name + "."
		first = time.Date(2019, 1, 1+rng.IntN(2000), 0, 0, 0, 0, time.UTC).Format(time.DateOnly)
	}
	return []any{id, name, fmt.Sprintf("#%06x", rng.IntN(1<<24)), description, rng.IntN(5000), first}
}

// pickTags gives the ids of up to four different tags.
func pickTags(rng *rand.Rand) []uint32 {
	var ids []uint32
	seen := map[uint32]bool{}
	for range 1 + rng.IntN(4) {
		id := uint32(1 + rng.IntN(len(tagNames)))
		if !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids
}

func caseRow(rng *rand.Rand, question uint64) []any {
	expected := binary.BigEndian.AppendUint64(nil, rng.Uint64())
	expected = append(expected, 0, '\'', 0xff, '\n', 0)
	var memory, grace any
	if rng.IntN(3) > 0 {
		memory = 64 << rng.IntN(5)
		grace = fmt.Sprintf("%02d:%02d:%02d.%03d", rng.IntN(30), rng.IntN(60), rng.IntN(60), rng.IntN(1000))
	}
	return []any{question, pick(rng, []string{"sample", "edge", "random", "large", "adversarial"}),
		numbers(rng, 3+rng.IntN(40)), expected, rng.Float64() * 10, []byte{byte(rng.IntN(2))},
		500 + rng.IntN(40)*100, memory, grace, 2015 + rng.IntN(12)}
}
