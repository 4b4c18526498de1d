package dlq

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// arrival is an Import into the box of a log.
func arrival(l *Letters, log *memory) *Import {
	return &Import{
		Box: func(sink string) *Letters {
			if sink != l.Sink {
				return nil
			}
			return l
		},
		Takes:  func(_ string, t cdc.TableName) bool { return t == questions },
		Prefix: "shop", Partitions: 4, Newest: base + 100, LineBytes: 1 << 20,
		Put: func(ctx context.Context, records ...kafka.Record) error {
			for _, r := range records {
				if err := log.Produce(ctx, r); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// rightly is a refusal whose record stands in the partition of its key.
func rightly(id int, v cdc.Version, reason string) []sinks.Refusal {
	one := refusal(id, v, reason)
	one.Record.Partition = kafka.PartitionFor(one.Record.Key, 4)
	return []sinks.Refusal{one}
}

func exported(t testing.TB, l *Letters) string {
	t.Helper()
	var out bytes.Buffer
	if err := l.Export(t.Context(), list(t, l, Filter{}), &out); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// put imports a file, and gives what became of each letter.
func put(t testing.TB, im *Import, text string) (kept []string, err error) {
	t.Helper()
	found, err := im.Check(t.Context(), strings.NewReader(text))
	for _, f := range found {
		kept = append(kept, f.Key+": "+f.Kept)
	}
	if err != nil {
		return kept, err
	}
	return kept, im.Run(t.Context(), strings.NewReader(text), found, func(int) {})
}

// Whatever bytes a record holds, what is put back is what was taken out.
func TestWhatIsExportedIsImportedByteForByte(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		l, log := newLetters()
		for id := range rapid.IntRange(1, 5).Draw(r, "letters") {
			one := rightly(id, base+1, rapid.String().Draw(r, "reason"))[0]
			one.Record.Headers = append(one.Record.Headers, cdc.Header{Key: rapid.SampledFrom([]string{"x", "\xff\x00", HeaderState}).Draw(r, "header"), Value: rapid.SliceOf(rapid.Byte()).Draw(r, "value")})
			bury(t, l, one)
		}
		odd := undecodable(7, rapid.SliceOf(rapid.Byte()).Draw(r, "key"))
		if odd.Record.Value = rapid.SliceOf(rapid.Byte()).Draw(r, "bytes"); rapid.Bool().Draw(r, "no value") {
			odd.Record.Value = nil
		}
		bury(t, l, odd)
		log.records[l.Topic] = append(log.records[l.Topic], kafka.Record{Topic: l.Topic, Offset: 99, Key: []byte("junk"), Value: []byte("no letter")})
		text := exported(t, l)
		other, there := newLetters()
		if _, err := put(t, arrival(other, there), text); err != nil {
			t.Fatal(err)
		}
		bytesOf := func(m *memory) (records []string) {
			for _, r := range m.records[l.Topic] {
				if string(r.Key) != "junk" {
					records = append(records, fmt.Sprintf("%d %q %q %t %q", r.Partition, r.Key, r.Value, r.Value == nil, r.Headers))
				}
			}
			slices.Sort(records)
			return records
		}
		expect(t, "records", bytesOf(there), bytesOf(log))
		if again := exported(t, other); again != text {
			t.Errorf("exported again it is\n%s, was\n%s", again, text)
		}
	})
}

// A letter that has followed its row to another partition goes where its row changes now,
// which is not where its record stood.
func TestALetterThatHasMovedIsImported(t *testing.T) {
	l, log := newLetters()
	one := rightly(1, base+1, "a")[0]
	home := one.Record.Partition
	one.Record.Partition = (home + 1) % 4
	moved := l.open(one.Record, l.refused(one))
	moved.Partition = home
	if err := log.Produce(t.Context(), moved); err != nil {
		t.Fatal(err)
	}
	text := exported(t, l)
	other, there := newLetters()
	if kept, err := put(t, arrival(other, there), text); err != nil || len(kept) != 1 {
		t.Fatal(kept, err)
	}
	expect(t, "exported again", exported(t, other), text)
}

func TestImportingTwiceOrLateChangesNothing(t *testing.T) {
	l, log := newLetters()
	bury(t, l, slices.Concat(rightly(1, base+1, "a"), rightly(2, base+2, "a"), rightly(3, base+3, "a"))...)
	text := exported(t, l)
	first, second := list(t, l, Filter{Key: "1"})[0], list(t, l, Filter{Key: "2"})[0]
	if err := errors.Join(l.Skip(t.Context(), first, "known"), l.finish(t.Context(), second, Resolved, "replayed")); err != nil {
		t.Fatal(err)
	}
	bury(t, l, rightly(2, base+9, "newer")...)
	kept, err := put(t, arrival(l, log), text)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "left out", kept, []string{"1: ", "2: a newer letter of its row is open", "3: it is open already"})
	expect(t, "open", rows(list(t, l, Filter{})), "1@1 2@9 3@3")
	records := len(log.records[l.Topic])
	kept, err = put(t, arrival(l, log), text)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "again", kept, []string{"1: it is open already", "2: a newer letter of its row is open", "3: it is open already"})
	expect(t, "records", len(log.records[l.Topic]), records)
}

// A letter of a row that the store has newer meanwhile does no harm: a replay closes it.
func TestAnImportedLetterOfARowThatIsNewerIsSuperseded(t *testing.T) {
	l, log := newLetters()
	bury(t, l, rightly(1, base+1, "a")...)
	text := exported(t, l)
	delete(log.records, l.Topic)
	if _, err := put(t, arrival(l, log), text); err != nil {
		t.Fatal(err)
	}
	s := &store{rows: map[string]cdc.Version{`{"id":1}`: base + 5}}
	said, err := replayed(t, l, s, ReplayOptions{})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "said", said, map[string]string{"1": "superseded"})
	expect(t, "the row", s.rows[`{"id":1}`], base+5)
	expect(t, "open", len(list(t, l, Filter{})), 0)
}

// One wrong line, named with its number, keeps all of the file out.
func TestAWrongLineKeepsTheWholeFileOut(t *testing.T) {
	l, log := newLetters()
	bury(t, l, slices.Concat(rightly(1, base+1, "a"), rightly(2, base+2, "a"))...)
	bury(t, l, undecodable(5, nil))
	lines := strings.SplitAfter(exported(t, l), "\n")
	first, last := lines[0], lines[2]
	with := func(old, new string) string {
		t.Helper()
		changed := strings.ReplaceAll(first, old, new)
		if changed == first {
			t.Fatalf("%s is not in %s", old, first)
		}
		return sealed(changed)
	}
	id := list(t, l, Filter{Key: "1"})[0].ID
	value := first[strings.Index(first, `"value":`):strings.Index(first, `,"headers"`)]
	closed := sealed(strings.Replace(with(`"parked"`, `"skipped"`), value, `"value":null`, 1))
	p := kafka.PartitionFor([]byte(`{"id":1}`), 4)
	for want, bad := range map[string]string{
		"it is empty": "\n",
		`it is no letter as lockstep dlq export writes it: cannot unmarshal string into Go value of type dlq.line`: "\"text\"\n",
		`it is no letter as lockstep dlq export writes it: unknown field "more"`:                                   with(`{"format"`, `{"more":1,"format"`),
		"it is no letter as lockstep dlq export writes it: unexpected EOF":                                         first[:40] + "\n",
		"it is no letter as lockstep dlq export writes it: it has no format":                                       "{}\n",
		"there is more behind the letter":                                                                          strings.TrimSuffix(first, "\n") + "{}\n",
		`it has format "3" and this lockstep knows 2; import it with the lockstep that exported it`:                `{"format":"3","news":1}` + "\n",
		"it is not UTF-8":               with("mapping", "\xff"),
		`there is no sink "cache" here`: with(`"sink":"es"`, `"sink":"cache"`),
		`header lockstep.letter.sink is "cache" and the letter is of sink "es"`:                                                           with(`.sink","value":"es"`, `.sink","value":"cache"`),
		`its key makes the ID ` + id + ` and it says "es-x"`:                                                                              with(id, "es-x"),
		`not a letter: header lockstep.letter.state is "skipped", and it has a value: true`:                                               with(`"parked"`, `"skipped"`),
		"it is skipped, and only open letters are put back":                                                                               closed,
		fmt.Sprintf("it is of partition 9 and its record of %d, and this pipeline has 4 partitions", p):                                   with(fmt.Sprintf(`"partition":%d`, p), `"partition":9`),
		"its record stood in old.bank.questions, which is no topic of changes of the pipeline shop":                                       with("shop.bank.questions", "old.bank.questions"),
		"rows of bank.other do not go to sink es here":                                                                                    with("shop.bank.questions", "shop.bank.other"),
		"its record is broken: not a change record of this pipeline: value is not a JSON object":                                          with(`"value":"{\"before`, `"value":"\"before`),
		"its record is of bank.questions, and it says bank.tags, from the topic of bank.questions":                                        with(`letter.table","value":"bank.questions"`, `letter.table","value":"bank.tags"`),
		`its record is of row {"id":1} in version 4398046511105, and it says bank.questions/{"id":1} in version 4398046511109`:            with(`letter.version","value":"4398046511105"`, `letter.version","value":"4398046511109"`),
		"it is of the same row as line 2; leave one of them out":                                                                          lines[1],
		`not a letter: header x-retry-count is "-1"`:                                                                                      with(`x-retry-count","value":"0"`, `x-retry-count","value":"-1"`),
		`not a letter: header x-retry-count is "many"`:                                                                                    with(`x-retry-count","value":"0"`, `x-retry-count","value":"many"`),
		`bytes are null, a text or {"base64": "..."}`:                                                                                     with(`"key":"bank.questions/{\"id\":1}"`, `"key":7`),
		"it has no sha256; export it again with this lockstep":                                                                            seal.ReplaceAllString(first, "}"),
		"it is not as it was exported (its sha256 is another one); import the line as it was, and change the row with lockstep dlq patch": strings.Replace(first, `\"after\":{\"id\":1`, `\"after\":{\"id\":2`, 1),
		`its record is of row {"id":1} and holds another one`:                                                                             with(`\"after\":{\"id\":1`, `\"after\":{\"id\":2`),
		"its version 4398046511205 is above 4398046511204, the newest that this pipeline can have made, so it is of another one":          with("4398046511105", "4398046511205"),
	} {
		records := len(log.records[l.Topic])
		_, err := put(t, arrival(l, log), last+lines[1]+bad)
		var wrong *LineError
		if !errors.As(err, &wrong) || wrong.Line != 3 || !strings.Contains(wrong.Err.Error(), want) {
			t.Errorf("%v; want %s", err, want)
		}
		expect(t, "records", len(log.records[l.Topic]), records)
	}
	im := arrival(l, log)
	im.LineBytes = 100
	if _, err := put(t, im, first); err == nil || err.Error() != "line 1: it has more than 100 bytes" {
		t.Errorf("%v", err)
	}
	im = arrival(l, log)
	im.Partitions = 3
	if _, err := put(t, im, rightlyPlaced(t, 3)); err == nil || !strings.Contains(err.Error(), "it comes from a pipeline with another number of partitions") {
		t.Errorf("%v", err)
	}
	if kept, err := put(t, arrival(l, log), strings.TrimSuffix(first, "\n")); err != nil || len(kept) != 1 {
		t.Errorf("a last line without an end: %v, %v", kept, err)
	}
}

var seal = regexp.MustCompile(`,"sha256":"[0-9a-f]*"}`)

// sealed is a line that was changed and has the SHA-256 of what it says now.
func sealed(line string) string {
	text := seal.ReplaceAllString(strings.TrimSuffix(line, "\n"), "}")
	return fmt.Sprintf("%s,\"sha256\":\"%x\"}\n", strings.TrimSuffix(text, "}"), sha256.Sum256([]byte(text)))
}

// Whatever changes in a line, it is seen.
func TestALineThatIsNotAsItWasExportedIsRefused(t *testing.T) {
	l, log := newLetters()
	bury(t, l, rightly(1, base+1, "a")...)
	text := exported(t, l)
	if again := sealed(text); again != text {
		t.Fatalf("sealed again it is\n%s, was\n%s", again, text)
	}
	if _, err := put(t, arrival(l, log), strings.ReplaceAll(text, `,"`, `, "`)); err != nil {
		t.Errorf("spelled otherwise: %v", err)
	}
	rapid.Check(t, func(r *rapid.T) {
		changed := []byte(text)
		at := rapid.IntRange(0, len(text)-2).Draw(r, "at")
		if changed[at] = byte(rapid.IntRange(' ', '~').Draw(r, "to")); strings.EqualFold(string(changed), text) {
			return // the names of fields may be in capitals
		}
		var wrong *LineError
		if _, err := put(t, arrival(l, log), string(changed)); !errors.As(err, &wrong) {
			t.Errorf("%v of\n%s", err, changed)
		}
	})
}

// The newest version that the pipeline can have made goes in.
func TestTheNewestVersionIsImported(t *testing.T) {
	l, log := newLetters()
	bury(t, l, rightly(1, base+100, "a")...)
	text := exported(t, l)
	if kept, err := put(t, arrival(l, log), text); err != nil || len(kept) != 1 {
		t.Error(kept, err)
	}
}

// rightlyPlaced is a letter in a partition below n that is not the one of its key among n.
func rightlyPlaced(t *testing.T, n int) string {
	for id := range 100 {
		l, _ := newLetters()
		one := rightly(id, base+1, "a")
		if p := one[0].Record.Partition; p < n && p != kafka.PartitionFor(one[0].Record.Key, n) {
			bury(t, l, one...)
			return exported(t, l)
		}
	}
	t.Fatal("there is none")
	return ""
}

// A file that was changed between the two readings is not followed.
func TestAFileThatChangesMeanwhileIsNotFollowed(t *testing.T) {
	l, log := newLetters()
	bury(t, l, slices.Concat(rightly(1, base+1, "a"), rightly(2, base+2, "a"))...)
	lines := strings.SplitAfter(exported(t, l), "\n")
	delete(log.records, l.Topic)
	im := arrival(l, log)
	found, err := im.Check(t.Context(), strings.NewReader(lines[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{lines[1], lines[0] + lines[1]} {
		if err := im.Run(t.Context(), strings.NewReader(text), found, func(int) {}); err == nil || !strings.Contains(err.Error(), "the file has changed") {
			t.Errorf("%v", err)
		}
	}
}
