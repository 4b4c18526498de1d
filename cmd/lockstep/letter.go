package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"lockstep/admin"
	"lockstep/cdc"
	"lockstep/cdc/mysql"
	"lockstep/dlq"
	"lockstep/kafka"
	"lockstep/sinks"
)

const (
	// lookWithin bounds the questions to source and store about one letter, each.
	lookWithin = 10 * time.Second
	// lookBytes bounds the document of one row.
	lookBytes = 64 << 20
)

func newDLQShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one dead letter, and its row in MySQL and in the store now",
		Long: `Show prints a dead letter: why the store refused the row and what is likely to help,
what a replay would come to, and the row field by field: as it was recorded, as MySQL has it
now, and as the store has it. A * marks what differs. What cannot be reached is said and left
out. Columns that are masked stay masked. With -o json or yaml it prints the record, too: key,
value and headers as they were.`,
		Example: `  lockstep dlq show search-5f0c2a91d37e
  lockstep dlq show search-5f0c2a91d37e -o json | jq '.fields[] | select(.differs)'`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: one(a.completeLetters(&letterFlags{})),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withLetters(cmd.Context(), func(ctx context.Context, o *office) error {
				letter, err := o.find(ctx, args[0])
				if err != nil {
					return err
				}
				view, record, err := o.Look(ctx, letter)
				if err != nil {
					return err
				}
				return a.show(admin.Show(letter, view, record), func(w io.Writer) { printLetter(w, letter, view, record) })
			})
		},
	}
}

// record is what a letter holds, as it stood in its own topic.
func (d *desk) record(ctx context.Context, l dlq.Letter) (record kafka.Record, err error) {
	err = d.box(l.Sink).Records(ctx, []dlq.Letter{l}, func(_ dlq.Letter, r kafka.Record) error {
		record = r
		return nil
	})
	return record, err
}

// Look is what there is to see of a letter now. What cannot be reached is a problem in
// its place; an error is only of Kafka.
func (d *desk) Look(ctx context.Context, l dlq.Letter) (dlq.View, kafka.Record, error) {
	record, err := d.record(ctx, l)
	if err != nil {
		return dlq.View{}, record, err
	}
	seen := dlq.Seen{Letter: l, Record: record, Store: d.cfg.Sinks[l.Sink].Store()}
	change, err := cdc.Decode(record.Key, record.Value, record.Headers)
	if !l.Replayable() || err != nil {
		const unread = "the record cannot be read, so nobody knows which row it is"
		seen.Now.Problem, seen.Stored.Problem = unread, unread
		return dlq.NewView(seen), record, nil
	}
	if masks := d.cfg.Source.Masks; masks != nil {
		seen.Masked = masks(change.Table).Columns()
	}
	pos, found, err := kafka.PeekCheckpoint(ctx, d.kafka, d.cfg.Prefix)
	if err != nil {
		return dlq.View{}, record, err
	}
	next := change.Version
	if found {
		seen.Newest = pos.Barriers[change.Table.String()]
		next = nextVersion(pos)
	}
	var layout uint32
	seen.Now, layout = d.rowNow(ctx, change)
	d.lookAtStore(ctx, &seen, change, layout, next)
	return dlq.NewView(seen), seen.Veiled(), nil
}

// nextVersion is one that no row has yet: what is read from now on gets it or a lower one.
func nextVersion(pos cdc.Position) cdc.Version {
	v, err := cdc.NewVersion(pos.Epoch, cdc.MaxSeq)
	if err != nil {
		panic(err) // a position that was saved
	}
	return v
}

// newestVersion is one that no change before a position is above.
func newestVersion(pos cdc.Position) cdc.Version {
	v, err := pos.Version()
	if err != nil {
		panic(err) // a position that was saved
	}
	return above(v)
}

// above is the highest version of a change that stands before a place with this version, or
// of a row that was read there.
func above(v cdc.Version) cdc.Version {
	return v - cdc.Version(v.Seq()) + cdc.Version(min(v.Seq()+cdc.Turns, cdc.MaxSeq))
}

// rowNow is the row of a change as the source has it.
func (d *desk) rowNow(ctx context.Context, c cdc.Change) (now dlq.RowNow, layout uint32) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	err := mysql.Rows(ctx, d.cfg.Source, c.Table, [][]byte{c.Key}, func(_, row []byte, print uint32) error {
		now.Row, now.Gone, layout = append([]byte(nil), row...), row == nil, print
		return nil
	})
	if err != nil {
		return dlq.RowNow{Problem: oneLine(err.Error())}, 0
	}
	return now, layout
}

// lookAtStore asks the store of a letter for the row, and what it would answer.
func (d *desk) lookAtStore(ctx context.Context, seen *dlq.Seen, recorded cdc.Change, layout uint32, next cdc.Version) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	s, err := d.openSink(ctx, seen.Letter.Sink)
	if err != nil {
		seen.Stored.Problem = oneLine(err.Error())
		return
	}
	defer s.close()
	present := recorded
	if seen.Now.Problem == "" {
		present = dlq.Resynced(recorded, seen.Now.Row, layout, next)
	}
	seen.Stored = s.reader.Stored(ctx, []cdc.Change{present}, lookBytes)[0]
	if len(seen.Masked) > 0 && seen.Now.Row == nil {
		seen.Stored.Place = nil // it may be made of a value that is masked by now
	}
	if len(seen.Masked) == 0 {
		if was := s.reader.Stored(ctx, []cdc.Change{recorded}, lookBytes)[0]; was.Version > seen.Stored.Version {
			seen.Stored = was // the row has moved, and the store does not know it yet
		}
	}
	ask := func(c cdc.Change) *sinks.Prospect { return &s.reader.Would(ctx, []cdc.Change{c})[0] }
	seen.Payload = ask(recorded)
	if seen.Now.Problem == "" {
		seen.Resync = ask(present)
	}
}

func printLetter(w io.Writer, l dlq.Letter, v dlq.View, r kafka.Record) {
	for _, line := range [][2]string{
		{"id", l.ID}, {"sink", l.Sink}, {"state", string(l.State)}, {"table", l.Table}, {"key", l.Key}, {"version", l.Version.String()}, {"gtid", l.GTID},
		{"committed", clock(l.Committed)}, {"not in the store since", clock(l.Undelivered)}, {"stage", l.Stage}, {"class", string(l.Class)}, {"why", v.Why}, {"reason", oneLine(l.Reason)}, {"retries", fmt.Sprint(l.Retries)},
		{"first failed", clock(l.FirstFailed)}, {"last failed", clock(l.LastFailed)},
		{"fingerprint", l.Fingerprint}, {"source", l.Source.String()}, {"written by", l.App}, {"patched", patchedBy(l.Patched)},
		{"in MySQL now", inSource(v.Now)}, {"in the store now", inStore(v.Stored)},
		{"a replay", told(v.Resync)}, {"a replay of the recorded row", told(v.Payload)}, {"mend", v.Mend},
	} {
		if line[1] != "" {
			fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
		}
	}
	if !l.Replayable() {
		fmt.Fprintf(w, "record key\t%s\nrecord value\t%s\n", oneLine(string(r.Key)), shorten(oneLine(string(r.Value)), 1000))
		return
	}
	if len(v.Fields) == 0 {
		return
	}
	fmt.Fprintln(w, "\n\tFIELD\tRECORDED\tMYSQL NOW\tSINK NOW")
	for _, f := range v.Fields {
		mark := ""
		if f.Differs {
			mark = "*"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", mark, f.Name, cell(f.Recorded), cell(f.Now), cell(f.Sink))
	}
}

func patchedBy(p *dlq.Patched) string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf("by %s at %s, so what is recorded below is not what the capture has read; a replay that reads the row again ignores it", p.By, clock(p.At))
}

func cell(value []byte) string { return dash(shorten(oneLine(string(value)), 60)) }

func told(r *dlq.Result) string {
	switch {
	case r == nil:
		return ""
	case r.Reason == "":
		return string(r.State)
	}
	return string(r.State) + ": " + oneLine(r.Reason)
}

func inSource(now dlq.RowNow) string {
	switch {
	case now.Problem != "":
		return "cannot be told: " + now.Problem
	case now.Gone:
		return "the row is gone"
	}
	return "the row is there"
}

func inStore(s dlq.SinkNow) string {
	where := pairs(s.Place)
	switch {
	case s.Problem != "":
		return "cannot be told: " + oneLine(s.Problem)
	case s.Deleted:
		return fmt.Sprintf("deleted at version %s (%s)", s.Version, where)
	case s.Document == nil && !s.Omitted && s.Version == 0:
		return "nothing (" + where + ")"
	case s.Omitted:
		return fmt.Sprintf("version %s, too large to be shown (%s)", s.Version, where)
	}
	return fmt.Sprintf("version %s (%s)", s.Version, where)
}

// preview says what a replay would do with each letter, and changes nothing.
func (o *office) preview(ctx context.Context, a *app, letters []dlq.Letter, mode dlq.Mode) error {
	results := []outcome{}
	unknown, said := 0, time.Now()
	failed := o.Preview(ctx, letters, mode == dlq.Resync, func(l dlq.Letter, r dlq.Result) {
		results = append(results, outcome{l.ID, l.Sink, l.Table, l.Key, r})
		if r.State == dlq.Unknown {
			unknown++
		}
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			fmt.Fprintf(a.stderr, "lockstep: looked at %d of %s\n", len(results), count(len(letters), "letter"))
		}
	})
	if unknown > 0 {
		failed = errors.Join(failed, fmt.Errorf("of %d of %s nobody knows what would become of them", unknown, count(len(letters), "dead letter")))
	}
	return errors.Join(a.show(results, func(w io.Writer) { printOutcomes(w, results) }), failed)
}

// Preview tells of each letter what a replay would come to. What one sink cannot say does
// not keep the others from it.
func (d *desk) Preview(ctx context.Context, letters []dlq.Letter, resync bool, tell func(dlq.Letter, dlq.Result)) error {
	if len(letters) == 0 {
		return nil
	}
	pos, found, err := kafka.PeekCheckpoint(ctx, d.kafka, d.cfg.Prefix)
	if err != nil {
		return err
	}
	p := dlq.Preview{Resync: resync, Barriers: pos.Barriers, Rows: d.rows, Tell: tell}
	if found {
		p.Next = nextVersion(pos)
	} else if resync {
		return errors.New("no position is saved: the capture, which would read the rows again, has never run")
	}
	bySink := map[string][]dlq.Letter{}
	for _, l := range letters {
		bySink[l.Sink] = append(bySink[l.Sink], l)
	}
	var failed error
	for _, name := range d.cfg.SinkNames() {
		if len(bySink[name]) == 0 {
			continue
		}
		if err := d.previewSink(ctx, name, bySink[name], p); err != nil {
			failed = errors.Join(failed, fmt.Errorf("sink %s: %w", name, err))
		}
	}
	return failed
}

func (d *desk) previewSink(ctx context.Context, name string, letters []dlq.Letter, p dlq.Preview) error {
	s, err := d.openSink(ctx, name)
	if err != nil {
		return err
	}
	defer s.close()
	p.Would, p.Moves, p.Remembers = s.reader.Would, s.movesRow, s.remembers
	return d.box(name).Preview(ctx, letters, p)
}

// WouldPatch is what a replay of a patched row would come to; Unknown where its store cannot
// be asked.
func (d *desk) WouldPatch(ctx context.Context, p *dlq.Patching) (dlq.Result, error) {
	pos, _, err := kafka.PeekCheckpoint(ctx, d.kafka, d.cfg.Prefix)
	if err != nil {
		return dlq.Result{}, err
	}
	s, err := d.openSink(ctx, p.Letter.Sink)
	if err != nil {
		return dlq.Result{State: dlq.Unknown, Reason: oneLine(err.Error())}, nil
	}
	defer s.close()
	return p.Would(ctx, dlq.Preview{Barriers: pos.Barriers, Rows: d.rows, Would: s.reader.Would, Moves: s.movesRow, Remembers: s.remembers})
}

func (d *desk) rows(ctx context.Context, t cdc.TableName, keys [][]byte, fn func(key, row []byte, layout uint32) error) error {
	return mysql.Rows(ctx, d.cfg.Source, t, keys, fn)
}

func newDLQExportCommand(a *app) *cobra.Command {
	var flags letterFlags
	var path string
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Write the open dead letters to a file, whole",
		Long: `Export writes each letter as a line of JSON: its record key, value and headers, byte for
byte, and why it was refused. Lockstep dlq import puts them back. The file holds rows,
as the topic does; one that --file names is made so that only you can read it.`,
		Example: `  lockstep dlq export --sink search --file letters.ndjson
  lockstep dlq export | jq -r .id`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, query, err := flags.chosen(a, cmd)
			if err != nil {
				return err
			}
			return a.withLetters(cmd.Context(), func(ctx context.Context, o *office) error {
				letters, err := o.Choose(ctx, query)
				if err != nil {
					return flagMistake(err)
				}
				if path == "" {
					return o.Export(ctx, letters, a.stdout)
				}
				f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
				if errors.Is(err, fs.ErrExist) {
					return fmt.Errorf("%s is there already; name another file, or remove it", path)
				}
				if err != nil {
					return err
				}
				if err := errors.Join(o.Export(ctx, letters, f), f.Close()); err != nil {
					return errors.Join(err, os.Remove(path)) // a part of the letters could be taken for all
				}
				fmt.Fprintf(a.stdout, "%s in %s\n", count(len(letters), "dead letter"), path)
				return nil
			})
		},
	}
	flags = addLetterFlags(cmd)
	cmd.Flags().StringVar(&path, "file", "", "write to this file, which must not be there, instead of standard output")
	return cmd
}

// Export writes letters that Choose has listed, one in a line.
func (d *desk) Export(ctx context.Context, letters []dlq.Letter, to io.Writer) error {
	out := bufio.NewWriter(to)
	for _, name := range d.cfg.SinkNames() {
		var some []dlq.Letter
		for _, l := range letters {
			if l.Sink == name {
				some = append(some, l)
			}
		}
		if len(some) == 0 {
			continue
		}
		if err := d.box(name).Export(ctx, some, out); err != nil {
			return fmt.Errorf("sink %s: %w", name, err)
		}
	}
	return out.Flush()
}

// imported is what became of a letter of a file.
type imported struct {
	ID     string `json:"id"`
	Sink   string `json:"sink"`
	Table  string `json:"table"`
	Key    string `json:"key"`
	Result string `json:"result"`
}

// importDone is what became of a file; of a dry run, what would.
type importDone struct {
	DryRun   bool       `json:"dry_run"`
	Imported int        `json:"imported"`
	LeftOut  int        `json:"left_out"`
	Letters  []imported `json:"letters"`
}

func newDLQImportCommand(a *app) *cobra.Command {
	var dryRun bool
	var reason string
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Put dead letters back that were exported",
		Long: `Import puts the letters of a file that lockstep dlq export wrote back into their topics, where
one was lost. The file must come from the same pipeline, with the same source, prefix and number of
partitions: a line with a version that this pipeline cannot have made, or that is not as it was
exported, is refused. With - it reads standard input. Every line is checked first; when one is wrong, or
of another format, sink or table, its number is named and nothing is changed.

It is safe to import twice, or late: a letter whose row has an open letter that is not
older is left out, and the next change of the row that a sink applies closes it. One whose
row the store has in the same or a newer version meanwhile is open until then, or until a replay
closes it: see lockstep dlq replay --dry-run.`,
		Example: `  lockstep dlq import letters.ndjson --dry-run
  lockstep dlq import letters.ndjson --reason "the topic was deleted"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" && !dryRun {
				return usageError{errors.New("--reason is missing; say why the letters are put back")}
			}
			file, done, err := a.twice(args[0])
			if err != nil {
				return err
			}
			defer done()
			return a.withLetters(cmd.Context(), func(ctx context.Context, o *office) error {
				return o.importLetters(ctx, a, args[0], file, dryRun, reason)
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check the file, say what would be imported, and change nothing")
	cmd.Flags().StringVar(&reason, "reason", "", "why they are put back (required, but for a dry run)")
	a.addActor(cmd)
	return cmd
}

// Patching is a patch of a letter that fits, and what it changes.
func (d *desk) Patching(ctx context.Context, l dlq.Letter, patch []byte) (*dlq.Patching, []dlq.Field, error) {
	record, err := d.record(ctx, l)
	if err != nil {
		return nil, nil, err
	}
	var columns []cdc.Column
	var masked map[string]bool
	if l.Replayable() {
		table := tableNamed(l.Table)
		now, err := mysql.Describe(ctx, d.cfg.Source, table)
		if errors.Is(err, cdc.ErrNoTable) {
			return nil, nil, &dlq.PatchError{Problem: fmt.Sprintf("the source has no table %s any more; skip the letter", table)}
		}
		if err != nil {
			return nil, nil, fmt.Errorf("which columns %s has: %w", table, err)
		}
		columns = now.Columns
		if masks := d.cfg.Source.Masks; masks != nil {
			masked = masks(table).Columns()
		}
	}
	p, err := dlq.NewPatching(l, record, patch, columns, masked)
	if err != nil {
		return nil, nil, err
	}
	if to, ok := d.cfg.RedisTable(tableNamed(l.Table)); ok && d.cfg.Sinks[l.Sink].Redis != nil {
		for _, named := range to.Columns() {
			if (named.Field == "key" || named.Field == "member") && slices.Contains(p.Columns, named.Column) {
				return nil, nil, &dlq.PatchError{Problem: fmt.Sprintf("it changes %s, which redis.%s names: no later change of the row would find the place where it would stand", named.Column, named.Field)}
			}
		}
	}
	return p, p.Fields(masked), nil
}

// Patch writes a patched letter.
func (d *desk) Patch(ctx context.Context, p *dlq.Patching, by string) error {
	return d.box(p.Letter.Sink).Patch(ctx, p, by, time.Now().UTC())
}

// patchBytes bounds a patch.
const patchBytes = 1 << 20

func newDLQPatchCommand(a *app) *cobra.Command {
	var path, reason string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "patch ID --patch FILE",
		Short: "Change the row that a dead letter holds",
		Long: `Patch applies a JSON Patch (RFC 6902) to the row as it was recorded, for a value that the
store cannot take and that cannot be mended in MySQL now. Key and version stay as they are:
columns of the primary key, and those that the table does not have or that are masked, cannot be
patched, a value must be one that its column can have, and a patch of which one operation cannot
be done changes nothing.

The letter stays, parked, and says who patched it, when, and the hash of the record as it was.
A replay of the recorded row (payload) sends the patched one; a replay that reads the row again
(resync) ignores it. The store then has a row that MySQL does not have, until the row changes
there.`,
		Example: `  echo '[{"op": "replace", "path": "/price", "value": "0.00"}]' |
    lockstep dlq patch search-5f0c2a91d37e --patch - --reason "ticket 4711" --dry-run`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: one(a.completeLetters(&letterFlags{})),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case path == "":
				return usageError{errors.New("--patch is missing; name a file with a JSON Patch, or - for standard input")}
			case strings.TrimSpace(reason) == "" && !dryRun:
				return usageError{errors.New("--reason is missing; say why the row is changed here and not in MySQL")}
			}
			patch, err := a.readAll(path, patchBytes)
			if err != nil {
				return err
			}
			return a.withLetters(cmd.Context(), func(ctx context.Context, o *office) error {
				letter, err := o.find(ctx, args[0])
				if err != nil {
					return err
				}
				p, fields, err := o.Patching(ctx, letter, patch)
				if err != nil {
					return fmt.Errorf("letter %s is not patched: %w", letter.ID, err)
				}
				shown := patchShown{ID: letter.ID, Patched: !dryRun, Fields: fields}
				if dryRun {
					would, err := o.WouldPatch(ctx, p)
					if err != nil {
						return err
					}
					shown.Payload = &would
				} else {
					who, err := a.who()
					if err != nil {
						return err
					}
					err = o.act(ctx, a, "dlq.patch", map[string]string{"id": letter.ID, "columns": strings.Join(p.Columns, ",")}, reason, func() (map[string]int, error) {
						return map[string]int{"patched": 1}, o.Patch(ctx, p, who)
					})
					if err != nil {
						return err
					}
				}
				return a.show(shown, func(w io.Writer) {
					if !dryRun {
						fmt.Fprintf(w, "dead letter %s is patched\n", letter.ID)
					}
					fmt.Fprintln(w, "FIELD\tWAS\tIS")
					for _, f := range fields {
						fmt.Fprintf(w, "%s\t%s\t%s\n", f.Name, cell(f.Recorded), cell(f.Now))
					}
					if dryRun {
						fmt.Fprintf(w, "\na replay of the patched row: %s\n", told(shown.Payload))
					}
				})
			})
		},
	}
	cmd.Flags().StringVar(&path, "patch", "", "file with a JSON Patch, or - for standard input (required)")
	cmd.Flags().StringVar(&reason, "reason", "", "why the row is changed here and not in MySQL (required, but for a dry run)")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be changed and what a replay of it would come to, and change nothing")
	a.addActor(cmd)
	return cmd
}

// patchShown is what a patch changes: recorded is what a column was, now what it is.
type patchShown struct {
	ID      string      `json:"id"`
	Patched bool        `json:"patched"`
	Fields  []dlq.Field `json:"fields"`
	// Payload is what a replay of the patched row would come to, of a dry run.
	Payload *dlq.Result `json:"would_payload,omitempty"`
}

// readAll reads a file, or standard input for -.
func (a *app) readAll(path string, most int64) ([]byte, error) {
	in := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, most+1))
	if err == nil && int64(len(text)) > most {
		err = fmt.Errorf("%s has more than %d bytes", path, most)
	}
	return text, err
}

// twice opens a file, or a copy of standard input for -, that can be read twice.
func (a *app) twice(path string) (file *os.File, done func(), err error) {
	if path != "-" {
		file, err = os.Open(path)
		return file, func() { file.Close() }, err
	}
	if file, err = os.CreateTemp("", "lockstep-import-"); err != nil {
		return nil, nil, err
	}
	done = func() {
		file.Close()
		_ = os.Remove(file.Name())
	}
	if _, err = io.Copy(file, a.stdin); err != nil {
		done()
		return nil, nil, fmt.Errorf("read standard input: %w", err)
	}
	return file, done, nil
}

func (o *office) importLetters(ctx context.Context, a *app, name string, file *os.File, dryRun bool, reason string) error {
	found, err := o.Arriving(ctx, file)
	if wrong, ok := errors.AsType[*dlq.LineError](err); ok {
		return fmt.Errorf("%s: %w; nothing was imported", name, wrong)
	}
	if err != nil {
		return fmt.Errorf("nothing was imported: %w", err)
	}
	results := make([]imported, len(found))
	done := importDone{Letters: results, DryRun: dryRun}
	fresh := 0
	for i, f := range found {
		results[i] = imported{f.ID, f.Sink, f.Table, f.Key, "left out: " + f.Kept}
		if f.Kept == "" {
			fresh++
			results[i].Result = "would be imported"
		}
	}
	done.LeftOut = len(found) - fresh
	if dryRun || fresh == 0 {
		if dryRun {
			done.Imported = fresh
		}
		return a.show(done, func(w io.Writer) { printImported(w, done) })
	}
	err = o.act(ctx, a, "dlq.import", map[string]string{"file": name}, reason, func() (map[string]int, error) {
		counts := map[string]int{"imported": 0, "left_out": done.LeftOut}
		return counts, o.Import(ctx, file, found, func(i int) {
			results[i].Result = "imported"
			done.Imported++
			counts["imported"]++
		})
	})
	for i := range results {
		if results[i].Result == "would be imported" {
			results[i].Result = "not reached"
		}
	}
	return errors.Join(err, a.show(done, func(w io.Writer) { printImported(w, done) }))
}

// importer says where letters of a file may go now.
func (d *desk) importer(ctx context.Context) (*dlq.Import, error) {
	topics, err := d.kafka.Topics(ctx)
	if err != nil {
		return nil, err
	}
	pos, saved, err := kafka.PeekCheckpoint(ctx, d.kafka, d.cfg.Prefix)
	if err != nil {
		return nil, err
	}
	if !saved {
		return nil, fmt.Errorf("%w of the pipeline %s, so nobody knows which letters are its own; start its capture first", dlq.ErrNoPosition, d.cfg.Prefix)
	}
	box := func(sink string) *dlq.Letters {
		if _, ok := d.cfg.Sinks[sink]; !ok {
			return nil
		}
		b := d.box(sink)
		if !slices.Contains(topics, b.Topic) {
			b.Log = noLetters{b.Log}
		}
		return b
	}
	return &dlq.Import{
		Box: box, Takes: d.takes, Prefix: d.cfg.Prefix, Partitions: d.cfg.Kafka.Partitions, Newest: newestVersion(pos),
		LineBytes: 6*(d.cfg.Kafka.MaxRecordBytes+dlq.HeaderBytes) + 64<<10, // a byte takes six at most
		Put:       d.log.ProduceAll,
	}, nil
}

// Arriving checks a file of letters, and returns what Import does with each. Its error is a
// dlq.LineError for a line that is no letter for this pipeline.
func (d *desk) Arriving(ctx context.Context, file io.ReadSeeker) ([]dlq.Found, error) {
	im, err := d.importer(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	return im.Check(ctx, file)
}

// Import puts the letters of a file back that was found so.
func (d *desk) Import(ctx context.Context, file io.ReadSeeker, found []dlq.Found, done func(i int)) error {
	im, err := d.importer(ctx)
	if err != nil {
		return err
	}
	for _, sink := range dlq.Sinks(found) {
		if err := d.kafka.EnsureTopic(ctx, dlq.Topic(d.cfg.Prefix, sink, d.cfg.Kafka.Partitions, d.cfg.Kafka.MaxRecordBytes)); err != nil {
			return err
		}
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return im.Run(ctx, file, found, done)
}

// noLetters is a log of a sink that has no topic yet.
type noLetters struct{ dlq.Log }

func (noLetters) ReadAll(context.Context, string, func(kafka.Record) error) error { return nil }

// takes reports whether rows of a table go to a sink.
func (d *desk) takes(sink string, t cdc.TableName) bool {
	if d.cfg.Sinks[sink].Elastic != nil {
		_, ok := d.cfg.ElasticTable(t)
		return ok
	}
	_, ok := d.cfg.RedisTable(t)
	return ok
}

func printImported(w io.Writer, done importDone) {
	if len(done.Letters) == 0 {
		fmt.Fprintln(w, "no dead letters")
		return
	}
	fmt.Fprintln(w, "ID\tSINK\tTABLE\tKEY\tRESULT")
	for _, r := range done.Letters {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.ID, r.Sink, dash(r.Table), dash(r.Key), r.Result)
	}
	would := ""
	if done.DryRun {
		would = "would be "
	}
	fmt.Fprintf(w, "\n%d %simported, %d left out\n", done.Imported, would, done.LeftOut)
}
