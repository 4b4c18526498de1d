package freshness

import (
	"context"
	"fmt"
	"strings"

	"github.com/tidwall/gjson"

	"lockstep/cdc"
	"lockstep/dlq"
	"lockstep/kafka"
)

// RowState says how fresh a row is in a store.
type RowState string

const (
	// RowApplied: the store has the row as the transactions left it, or a newer state of it.
	RowApplied RowState = "applied"
	// RowPending: it is on its way.
	RowPending RowState = "pending"
	// RowDead: the store has refused it, and the row is a dead letter.
	RowDead RowState = "dead-lettered"
	// RowUnknown: nobody is heard of who would know.
	RowUnknown RowState = "unknown"
)

// Row is how fresh a row is.
type Row struct {
	State RowState `json:"state" doc:"applied, pending, dead-lettered or unknown"`
	Sink  string   `json:"sink"`
	Table string   `json:"table"`
	Key   string   `json:"key"`
	// GTIDs are the transactions that were waited for.
	GTIDs  string  `json:"gtids" doc:"the transactions that were waited for"`
	Millis float64 `json:"ms" doc:"how long it took, in milliseconds"`
	// WaitsFor says for what a row waits that is pending or unknown.
	WaitsFor []string `json:"waits_for,omitempty" doc:"for what a row waits that is pending or unknown, as sentences"`
	// Letter is that of a row that is dead-lettered, or of a record that nobody can read and
	// that may be of the row.
	Letter *dlq.Letter `json:"letter,omitempty" doc:"of a row that is dead-lettered; one of a record that nobody can read may be of another row"`
}

// Row tells how fresh a row is in a sink: whether it is there as the transactions gtids
// left it, or all that are committed now when it is empty. It waits for that until ctx ends.
// The key is the primary key as text, as dead letters have it, or a JSON object. It is a
// dlq.FieldError that the table has no such key.
func (b *Barrier) Row(ctx context.Context, sink, table, key, gtids string) (Row, error) {
	answer, err := b.Await(ctx, Ask{Sinks: []string{sink}, Table: table, Key: key, GTIDs: gtids})
	row := Row{Sink: sink, Table: table, Key: key, GTIDs: answer.GTIDs, Millis: answer.Millis}
	if err != nil {
		return row, err
	}
	texts := keyTexts(key, answer.columns)
	if texts == nil && answer.columns != nil {
		return row, &dlq.FieldError{Field: "key", Problem: fmt.Sprintf("%q is no primary key of %s, which has the columns %s; write it as lockstep dlq show has it, or as a JSON object of these columns", key, table, strings.Join(answer.columns, ", "))}
	}
	at := answer.Sinks[0]
	switch {
	case !at.Settled && at.Known:
		row.State, row.WaitsFor = RowPending, at.WaitsFor
		return row, nil
	case !at.Settled:
		row.State, row.WaitsFor = RowUnknown, at.WaitsFor
		return row, nil
	case len(at.Letters) == 0:
		row.State = RowApplied
		return row, nil
	}
	// Some row of its partitions is a dead letter. The letters are read although ctx may be
	// over: it says how long to wait for the row.
	if texts != nil {
		key = cdc.JoinKey(texts)
	}
	row.Letter, err = b.Letter(context.WithoutCancel(ctx), sink, table, key, rowPartitions(texts, answer.columns, len(at.Ends[table])))
	if err != nil {
		return row, fmt.Errorf("whether it is a dead letter is not known: %w", err)
	}
	if row.State = RowApplied; row.Letter != nil {
		row.State = RowDead
	}
	return row, nil
}

// rowPartitions are those of so many that can have the changes of a row: the one of its key,
// in every way in which its record can be written, and the first one, whose owner sweeps
// the store for a statement that empties the table. The texts are those of keyTexts. Nil
// stands for all.
func rowPartitions(texts, columns []string, partitions int) map[int]bool {
	if texts == nil || partitions == 0 || len(texts) > 6 { // of more there would be too many ways to write it
		return nil
	}
	keys := [][]byte{{'{'}}
	for i, text := range texts {
		var longer [][]byte
		for _, begun := range keys {
			if i > 0 {
				begun = append(begun, ',')
			}
			begun = append(cdc.AppendString(begun, columns[i]), ':')
			longer = append(longer, cdc.AppendString(begun[:len(begun):len(begun)], text))
			if gjson.Valid(text) { // a number, or a set
				longer = append(longer, append(begun[:len(begun):len(begun)], text...))
			}
		}
		keys = longer
	}
	ids := map[int]bool{0: true}
	for _, k := range keys {
		ids[kafka.PartitionFor(append(k, '}'), partitions)] = true
	}
	return ids
}

// keyTexts are the values of the columns of a key, in their order; nil when it is none of
// that table's.
func keyTexts(key string, columns []string) []string {
	if strings.HasPrefix(key, "{") {
		fields, err := cdc.KeyFields([]byte(key))
		if err != nil || len(fields) != len(columns) {
			return nil
		}
		given := map[string]string{}
		for _, f := range fields {
			given[f.Column] = f.Text
		}
		texts := make([]string, len(columns))
		for i, c := range columns {
			text, ok := given[c]
			if !ok {
				return nil
			}
			texts[i] = text
		}
		return texts
	}
	texts, ok := cdc.SplitKey(key, len(columns))
	if !ok {
		return nil
	}
	return texts
}
