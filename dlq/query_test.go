package dlq

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"lockstep/cdc"
)

func TestLettersAreChosenByTimeAndVersion(t *testing.T) {
	l, _ := newLetters()
	for i := range 4 { // each a version and a minute later than the one before
		r := refusal(i, base+10+cdc.Version(i), "a")
		r.Failed = failed.Add(time.Duration(i) * time.Minute)
		bury(t, l, r)
	}
	for want, fields := range map[string]map[string]string{
		"0@10 1@11 2@12 3@13": {},
		"1@11 2@12 3@13":      {"since": failed.Add(time.Minute).Format(time.RFC3339Nano)},
		"0@10 1@11":           {"until": failed.Add(2 * time.Minute).Format(time.RFC3339Nano)},
		"3@13":                {"since": "1m"},
		"0@10 1@11 2@12":      {"until": "1m"},
		"2@12":                {"min_version": fmt.Sprint(int64(base) + 12), "max_version": fmt.Sprint(int64(base) + 12)},
		"1@11":                {"key": "1", "table": "bank.questions", "class": "mapping", "sink": "es"},
	} {
		q, err := ParseQuery(fields, []string{"es"}, failed.Add(4*time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		letters, err := l.Choose(t.Context(), q)
		if err != nil || rows(letters) != want {
			t.Errorf("%v chooses %q, want %q: %v", fields, rows(letters), want, err)
		}
	}
}

func TestLettersAreChosenByState(t *testing.T) {
	l, _ := newLetters()
	for i, state := range []State{Parked, Retrying, Exhausted, Retrying} {
		r := refusal(i, base+10+cdc.Version(i), "a")
		letter := l.refused(r)
		letter.State = state
		if err := l.Log.Produce(t.Context(), l.open(r.Record, letter)); err != nil {
			t.Fatal(err)
		}
	}
	for state, want := range map[string]string{"parked": "0@10", "retrying": "1@11 3@13", "exhausted": "2@12"} {
		q, err := ParseQuery(map[string]string{"state": state}, []string{"es"}, failed)
		if err != nil {
			t.Fatal(err)
		}
		letters, err := l.Choose(t.Context(), q)
		if err != nil || rows(letters) != want {
			t.Errorf("%s chooses %q, want %q: %v", state, rows(letters), want, err)
		}
		if again, err := ParseQuery(q.Fields(), []string{"es"}, failed); err != nil || again != q { // as a job keeps it
			t.Errorf("%+v, %v", again, err)
		}
	}
	for _, state := range []string{"resolved", "moved", "open"} {
		if _, err := ParseQuery(map[string]string{"state": state}, []string{"es"}, failed); err == nil || err.Error() != fmt.Sprintf("state: %q is no state of an open letter; use one of [parked retrying exhausted]", state) {
			t.Errorf("%v", err)
		}
	}
}

func TestAFieldThatIsNotUnderstoodIsOneSentence(t *testing.T) {
	for want, fields := range map[string]map[string]string{
		"tabel: is no field of a dead letter to choose by; there are sink, table, key, state, class, fingerprint, since, until, min_version, max_version": {"tabel": "a.b"},
		`fingerprint: "c0ffee12345" is not 12 hexadecimal digits; copy it from lockstep dlq group or lockstep status`:                                     {"fingerprint": "c0ffee12345"},
		`fingerprint: "c0ffee12345z" is not 12 hexadecimal digits; copy it from lockstep dlq group or lockstep status`:                                    {"fingerprint": "c0ffee12345z"},
		"key: is empty; leave it out to choose all":                                      {"key": ""},
		"sink: there is no sink \"x\"; there are es":                                     {"sink": "x"},
		"min_version: \"9007199254740992\" is no version; use a number from 1 to 2^53-1": {"min_version": "9007199254740992"},
		"until: is not after since, so no letter can be chosen":                          {"since": "1h", "until": "1h"},
	} {
		if _, err := ParseQuery(fields, []string{"es"}, failed); err == nil || err.Error() != want {
			t.Errorf("%v: %v", fields, err)
		}
	}
}

func TestAFingerprintInCapitalsIsTheSame(t *testing.T) {
	q, err := ParseQuery(map[string]string{"fingerprint": "C0FFEE123456"}, []string{"es"}, failed)
	if err != nil || q.Fingerprint != "c0ffee123456" {
		t.Errorf("%q, %v", q.Fingerprint, err)
	}
}

func TestGroupsAreTheCausesLargestFirst(t *testing.T) {
	l, _ := newLetters()
	other := refusal(3, base+3, "b of '1'")
	other.Failed = failed.Add(-time.Hour)
	bury(t, l, refusal(1, base+1, "a of '1'"), refusal(2, base+2, "a of '2'"), other, undecodable(9, nil))
	var said []string
	for _, g := range Groups(list(t, l, Filter{})) {
		said = append(said, fmt.Sprint(g.Count, " ", g.Class, " ", g.Tables, " ", g.FirstSeen.Sub(failed), " ", g.LastSeen.Sub(failed), " ", g.Example != "", " ", g.Reason))
	}
	got := strings.Join(said, "\n")
	for _, want := range []string{"2 mapping [bank.questions] 0s 0s true a of '?'\n", "1 mapping [bank.questions] -1h0m0s -1h0m0s true b of '?'", "1 undecodable [] 0s 0s true header"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if !strings.HasPrefix(got, "2 ") || len(said) != 3 {
		t.Error(got)
	}
}
