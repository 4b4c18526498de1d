package dlq

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"lockstep/cdc"
	"lockstep/kafka"
	"lockstep/sinks"
)

// A file of letters has one in each line: its record, whole, so that what is put back is
// byte for byte what was taken out. Texts are texts, and other bytes are base64.

// line is a letter in a file.
type line struct {
	Format    string       `json:"format"` // HeaderFormat
	ID        string       `json:"id"`
	Sink      string       `json:"sink"`
	Partition int          `json:"partition"`
	Key       blob         `json:"key"`
	Value     blob         `json:"value"`
	Headers   []lineHeader `json:"headers"`
	// SHA256 is that of the line as it is written without this.
	SHA256 string `json:"sha256,omitempty"`
}

// seal is the SHA-256 that belongs to a line.
func (l line) seal() (string, error) {
	l.SHA256 = ""
	text, err := json.Marshal(l)
	return fmt.Sprintf("%x", sha256.Sum256(text)), err
}

type lineHeader struct {
	Key   blob `json:"key"`
	Value blob `json:"value"`
}

// blob is bytes that are mostly text.
type blob []byte

func (b blob) MarshalJSON() ([]byte, error) {
	switch {
	case b == nil:
		return []byte("null"), nil
	case utf8.Valid(b):
		return cdc.AppendString(nil, []byte(b)), nil
	}
	return json.Marshal(map[string][]byte{"base64": b})
}

func (b *blob) UnmarshalJSON(data []byte) error {
	var text string
	switch {
	case string(data) == "null":
		*b = nil
		return nil
	case json.Unmarshal(data, &text) == nil:
		*b = append(blob{}, text...)
		return nil
	}
	var coded struct {
		Base64 *[]byte `json:"base64"`
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&coded); err != nil || coded.Base64 == nil {
		return errors.New(`bytes are null, a text or {"base64": "..."}`)
	}
	*b = append(blob{}, *coded.Base64...)
	return nil
}

// Export writes the letters of one List to w, one in a line. What stands in the topic and is
// no letter is left out.
func (l *Letters) Export(ctx context.Context, letters []Letter, w io.Writer) error {
	letters = slices.DeleteFunc(slices.Clone(letters), func(letter Letter) bool { return letter.Source.Topic == l.Topic })
	return l.each(ctx, letters, func(letter Letter, r kafka.Record) error {
		out := line{letterFormat, letter.ID, l.Sink, r.Partition, r.Key, r.Value, make([]lineHeader, len(r.Headers)), ""}
		for i, h := range r.Headers {
			out.Headers[i] = lineHeader{blob(h.Key), h.Value}
		}
		var err error
		if out.SHA256, err = out.seal(); err != nil {
			return err
		}
		text, err := json.Marshal(out)
		if err == nil {
			_, err = w.Write(append(text, '\n'))
		}
		return err
	})
}

// Import says where letters of a file may go.
type Import struct {
	// Box is the box of a sink, nil for one that there is not.
	Box func(sink string) *Letters
	// Takes reports whether rows of a table go to a sink.
	Takes func(sink string, table cdc.TableName) bool
	// Prefix is that of the pipeline, and Partitions the number of its partitions.
	Prefix     string
	Partitions int
	// Newest is a version that no change of the pipeline is above. A newer one in a store
	// would keep every later change of its row out.
	Newest cdc.Version
	// LineBytes bounds a line.
	LineBytes int
	// Put writes records and returns when they are acknowledged.
	Put func(ctx context.Context, records ...kafka.Record) error
}

// LineError is what is wrong with a line of a file.
type LineError struct {
	Line int // from 1
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

func (e *LineError) Unwrap() error { return e.Err }

// Found is a letter of a file, and what becomes of it.
type Found struct {
	Letter Letter
	// Kept is why it is left out: a letter of its row is open that is not older.
	Kept string
}

const (
	keptSame  = "it is open already"
	keptNewer = "a newer letter of its row is open"
)

// Check reads a file of letters and changes nothing. It returns what Run would do with
// each. Its error is a LineError for a line that is no letter for this pipeline.
func (p *Import) Check(ctx context.Context, file io.Reader) ([]Found, error) {
	var found []Found
	lines := map[string]int{} // of a letter's ID and key
	open := map[string]map[identity]cdc.Version{}
	err := p.each(file, func(n int, _ kafka.Record, l Letter) error {
		name := l.Sink + "\x00" + l.key
		if first := lines[name]; first > 0 {
			return fmt.Errorf("it is of the same row as line %d; leave one of them out", first)
		}
		lines[name] = n
		if open[l.Sink] == nil {
			now, err := p.Box(l.Sink).versions(ctx)
			if err != nil {
				return err
			}
			open[l.Sink] = now
		}
		f := Found{Letter: l}
		if v, there := open[l.Sink][l.identity()]; there && v > l.Version {
			f.Kept = keptNewer
		} else if there && v == l.Version {
			f.Kept = keptSame
		}
		found = append(found, f)
		return nil
	})
	return found, err
}

// versions are those of the open letters.
func (l *Letters) versions(ctx context.Context) (map[identity]cdc.Version, error) {
	open := map[home]entry{}
	err := l.Log.ReadAll(ctx, l.Topic, func(r kafka.Record) error {
		letter, err := l.read(r)
		if err == nil {
			fold(open, letter, Filter{ID: "none"}) // only versions are of interest
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read letters of sink %s: %w", l.Sink, err)
	}
	newest := make(map[identity]cdc.Version, len(open))
	for at, e := range open {
		newest[at.id] = max(newest[at.id], e.version)
	}
	return newest, nil
}

// Run puts the letters of a file that was checked back, save those that Check would keep. A letter of
// a row that is refused meanwhile in a newer version is written again by the owner of its
// partition. done is called for each that is safe.
func (p *Import) Run(ctx context.Context, file io.Reader, checked []Found, done func(Letter)) error {
	var records []kafka.Record
	var letters []Letter
	size := 0
	flush := func() error {
		if len(records) == 0 {
			return nil
		}
		if err := p.Put(ctx, records...); err != nil {
			return fmt.Errorf("import letter %s: %w", letters[0].ID, err)
		}
		for _, l := range letters {
			done(l)
		}
		records, letters, size = records[:0], letters[:0], 0
		return nil
	}
	i := 0
	err := p.each(file, func(_ int, r kafka.Record, l Letter) error {
		if i == len(checked) || checked[i].Letter.key != l.key || checked[i].Letter.Sink != l.Sink {
			return errors.New("the file has changed since it was checked; nothing behind this line is imported")
		}
		kept := checked[i].Kept
		if i++; kept != "" {
			return nil
		}
		if records, letters, size = append(records, r), append(letters, l), size+r.Size(); len(records) == batchLetters || size > batchBytes {
			return flush()
		}
		return nil
	})
	if err == nil {
		err = flush()
	}
	return err
}

// each calls fn with the letters of a file.
func (p *Import) each(file io.Reader, fn func(n int, r kafka.Record, l Letter) error) error {
	in := bufio.NewReaderSize(file, 64<<10)
	for n := 1; ; n++ {
		text, err := readLine(in, p.LineBytes)
		if err == io.EOF && len(text) == 0 {
			return nil
		}
		if err == nil || err == io.EOF {
			var r kafka.Record
			var l Letter
			if r, l, err = p.parse(text); err == nil {
				err = fn(n, r, l)
			}
		}
		if err != nil {
			return &LineError{n, err}
		}
	}
}

// readLine reads up to the end of a line, which is left out; at the end of the file the
// error is io.EOF.
func readLine(in *bufio.Reader, most int) (text []byte, err error) {
	for {
		part, err := in.ReadSlice('\n')
		text = append(text, part...)
		if len(text) > most {
			return nil, fmt.Errorf("it has more than %d bytes", most)
		}
		if err != bufio.ErrBufferFull {
			return bytes.TrimRight(text, "\r\n"), err
		}
	}
}

// parse reads a line and refuses what is no open letter of this pipeline.
func (p *Import) parse(text []byte) (kafka.Record, Letter, error) {
	no := func(format string, args ...any) (kafka.Record, Letter, error) {
		return kafka.Record{}, Letter{}, fmt.Errorf(format, args...)
	}
	var of struct{ Format *string }
	if json.Unmarshal(text, &of) == nil && of.Format != nil && *of.Format != letterFormat { // before fields that nobody here knows
		return no("it has format %q and this lockstep knows %s; import it with the lockstep that exported it", *of.Format, letterFormat)
	}
	var in line
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	switch err := d.Decode(&in); {
	case !utf8.Valid(text):
		return no("it is not UTF-8")
	case err == io.EOF:
		return no("it is empty")
	case err != nil:
		return no("it is no letter as lockstep dlq export writes it: %s", strings.TrimPrefix(err.Error(), "json: "))
	case d.More():
		return no("there is more behind the letter")
	case in.Format != letterFormat:
		return no("it is no letter as lockstep dlq export writes it: it has no format")
	case in.SHA256 == "":
		return no("it has no sha256; export it again with this lockstep")
	}
	if sum, err := in.seal(); err != nil || sum != in.SHA256 {
		return no("it is not as it was exported (its sha256 is another one); import the line as it was, and change the row with lockstep dlq patch")
	}
	box := p.Box(in.Sink)
	if box == nil {
		return no("there is no sink %q here", in.Sink)
	}
	r := kafka.Record{Topic: box.Topic, Partition: in.Partition, Key: in.Key, Value: in.Value}
	sink := ""
	for _, h := range in.Headers {
		r.Headers = append(r.Headers, cdc.Header{Key: string(h.Key), Value: h.Value})
		if string(h.Key) == HeaderSink {
			sink = string(h.Value)
		}
	}
	l, err := readHeaders(in.Sink, r)
	if err != nil {
		return no("%v", err)
	}
	if l.Source == l.place {
		return no("%s", l.Reason) // not a letter, and why
	}
	if l.ID = letterID(in.Sink, l.identity()); l.ID != in.ID {
		return no("its key makes the ID %s and it says %q", l.ID, in.ID)
	}
	held := original(l, r)
	switch {
	case sink != in.Sink:
		return no("header %s is %q and the letter is of sink %q", HeaderSink, sink, in.Sink)
	case !l.State.Open():
		return no("it is %s, and only open letters are put back", l.State)
	case in.Partition < 0 || in.Partition >= p.Partitions || !l.Replayable() && in.Partition != l.Source.Partition: // a letter of a row may have been moved
		return no("it is of partition %d and its record of %d, and this pipeline has %d partitions", in.Partition, l.Source.Partition, p.Partitions)
	}
	table, ok := kafka.TableOf(p.Prefix, l.Source.Topic)
	if !ok {
		return no("its record stood in %s, which is no topic of changes of the pipeline %s", l.Source.Topic, p.Prefix)
	}
	if !p.Takes(in.Sink, table) {
		return no("rows of %s do not go to sink %s here", table, in.Sink)
	}
	if !l.Replayable() {
		if l.key != l.Source.String() {
			return no("its key is %q, and one that nobody can read has the place of its record, %s", l.key, l.Source)
		}
		return r, l, nil
	}
	change, err := cdc.Decode(held.Key, held.Value, held.Headers)
	switch {
	case err != nil:
		return no("its record is broken: %v", err)
	case change.Table != table || change.Table.String() != l.Table:
		return no("its record is of %s, and it says %s, from the topic of %s", change.Table, l.Table, table)
	case change.Version != l.Version || rowKey(change.Table, change.Key) != l.key:
		return no("its record is of row %s in version %s, and it says %s in version %s", change.Key, change.Version, l.key, l.Version)
	case change.Version > p.Newest:
		return no("its version %s is above %s, the newest that this pipeline can have made, so it is of another one; when it was refused just now, import it again in some seconds", change.Version, p.Newest)
	case change.After != nil && !ofKey(change.After, change.Key):
		return no("its record is of row %s and holds another one", change.Key)
	case kafka.PartitionFor(held.Key, p.Partitions) != in.Partition:
		return no("its row belongs to partition %d and it to %d: it comes from a pipeline with another number of partitions", kafka.PartitionFor(held.Key, p.Partitions), in.Partition)
	}
	return r, l, nil
}

// ofKey reports whether a row has the primary key.
func ofKey(row, key []byte) bool {
	same := true
	sinks.EachField(key, func(column string) { same = same && sinks.Same(sinks.Field(row, column), sinks.Field(key, column)) })
	return same
}

// Sinks are those of the letters.
func Sinks(found []Found) (names []string) {
	for _, f := range found {
		if !slices.Contains(names, f.Letter.Sink) {
			names = append(names, f.Letter.Sink)
		}
	}
	return names
}
