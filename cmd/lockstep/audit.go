package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"lockstep/audit"
)

func newAuditCommand(a *app) *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "audit",
		Short: "List what operators did, and verify that nothing was taken out of the list",
		Long: `Every act of an operator (replay, skip, patch, import, snapshot, rebuild, reconcile with
--repair, and a start with --resnapshot, --skip-gtid or --epoch) is written down before it
is done and when it is over, in a topic that is kept for ever. Each record carries a
hash over all before it.`,
		Example: `  lockstep audit list --since 24h
  lockstep audit verify`,
	})
	cmd.AddCommand(newAuditListCommand(a), newAuditVerifyCommand(a))
	return cmd
}

// addActor gives a command that acts the flag for who does it.
func (a *app) addActor(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.actor, "actor", "", "who does this, for the audit log (default $LOCKSTEP_ACTOR, else user@host)")
}

// who is the one who gives this command.
func (a *app) who() (string, error) {
	variable, _ := a.env("LOCKSTEP_ACTOR")
	name, from := cmp.Or(a.actor, variable), "--actor"
	if a.actor == "" {
		from = "LOCKSTEP_ACTOR"
	}
	if name == "" {
		return account() + "@" + machine(), nil
	}
	if len(name) > 200 || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.TrimSpace(name) != name {
		return "", usageError{fmt.Errorf("%s %q is no name; use 1 to 200 letters that can be printed, without a space at the ends", from, name)}
	}
	return name, nil
}

func account() string {
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return fmt.Sprintf("uid-%d", os.Getuid())
}

func machine() string {
	if name, err := os.Hostname(); err == nil && name != "" {
		return name
	}
	return "unknown-host"
}

// act does what an operator asks for and writes it down, before and after.
func (o *office) act(ctx context.Context, a *app, name string, filter map[string]string, reason string, do func() (map[string]int, error)) error {
	who, err := a.who()
	if err != nil {
		return err
	}
	maps.DeleteFunc(filter, func(_, value string) bool { return value == "" })
	began := false
	err = o.audit.Do(ctx, audit.Act{Actor: who, Via: "cli", Name: name, Filter: filter, Reason: reason}, func() (map[string]int, error) {
		began = true
		return do()
	})
	if err != nil && !began {
		return fmt.Errorf("nothing was done, because it cannot be written down first: %w", err)
	}
	return err
}

// errNoAudit says that nobody has done anything yet.
var errNoAudit = errors.New("no audit log")

// withAudit opens Kafka for do, which only reads.
func (a *app) withAudit(ctx context.Context, do func(context.Context, *office) error) error {
	return a.withLetters(ctx, func(ctx context.Context, o *office) error {
		topics, err := o.kafka.Topics(ctx)
		if err != nil {
			return err
		}
		if !slices.Contains(topics, audit.TopicOf(o.cfg.Prefix)) {
			return errNoAudit
		}
		return do(ctx, o)
	})
}

// auditFlags choose acts.
type auditFlags struct{ since, until, actor, act string }

func (f auditFlags) chosen() (filter audit.Filter, err error) {
	filter = audit.Filter{Actor: f.actor, Act: f.act}
	if filter.Since, err = moment("since", f.since); err != nil {
		return filter, err
	}
	if filter.Until, err = moment("until", f.until); err != nil {
		return filter, err
	}
	if err := filter.Check(); err != nil {
		return filter, usageError{fmt.Errorf("--act: %w", err)}
	}
	return filter, nil
}

// moment is a time, or how long ago it was; empty is the zero time.
func moment(flag, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return time.Now().Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return at, usageError{fmt.Errorf("--%s %q is no time; write how long ago, such as 2h, or a time such as 2026-11-26T03:00:00Z", flag, text)}
	}
	return at, nil
}

func newAuditListCommand(a *app) *cobra.Command {
	var f auditFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List what operators did",
		Long: `List shows every act with its outcome: done, failed (and why), begun (it is under way,
or was cut off), or unconfirmed (it did nothing: its command was killed before, or
another process did the same request).`,
		Example: `  lockstep audit list
  lockstep audit list --since 24h --act 'dlq.*'
  lockstep audit list --actor ann@desk -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := f.chosen()
			if err != nil {
				return err
			}
			acts := []audit.Listed{}
			breaks := 0
			err = a.withAudit(cmd.Context(), func(ctx context.Context, o *office) (err error) {
				acts, breaks, err = audit.List(ctx, o.log, o.cfg.Prefix, filter)
				return err
			})
			if err != nil && !errors.Is(err, errNoAudit) {
				return err
			}
			if breaks > 0 {
				fmt.Fprintf(a.stderr, "lockstep: the audit log is broken at %s, so what it says may be false; see: lockstep audit verify\n", count(breaks, "place"))
			}
			return a.show(acts, func(w io.Writer) { printActs(w, acts) })
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.since, "since", "", "only acts since this time, or this long ago, such as 2h")
	flags.StringVar(&f.until, "until", "", "only acts before this time, or longer ago than this")
	flags.StringVar(&f.actor, "actor", "", "only acts of this one; with a * at the end, of all whose name begins so")
	flags.StringVar(&f.act, "act", "", "only this act, such as dlq.skip, or dlq.* for all of dlq")
	return cmd
}

func printActs(w io.Writer, acts []audit.Listed) {
	if len(acts) == 0 {
		fmt.Fprintln(w, "no acts")
		return
	}
	fmt.Fprintln(w, "SEQ\tBEGAN\tACTOR\tVIA\tACT\tON\tREASON\tOUTCOME\tCOUNTS\tPROBLEM")
	for _, l := range acts {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.Seq, l.Began.Local().Format("2006-01-02 15:04:05"), l.Actor, l.Via, l.Act,
			dash(shorten(pairs(l.Filter), 80)), dash(shorten(oneLine(l.Reason), 60)), l.Outcome, dash(pairs(l.Counts)), dash(shorten(oneLine(l.Problem), 100)))
	}
}

func pairs[V any](m map[string]V) string {
	var words []string
	for _, key := range slices.Sorted(maps.Keys(m)) {
		words = append(words, fmt.Sprintf("%s=%v", key, m[key]))
	}
	return oneLine(strings.Join(words, " "))
}

func newAuditVerifyCommand(a *app) *cobra.Command {
	var head string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Find records of the audit log that were removed, changed, moved or put in",
		Long: `Verify walks over the whole audit log and checks that each record carries the hash of
everything before it. It prints the head, the hash over all of it.

What was taken from the end, or written anew up to the end, can only be found with a
head that somebody has kept elsewhere: give it with --head. Late records are none of an
intruder's: of two processes that wrote at once one was faster, and the other one wrote
its record again behind it.

It exits with 3 when the log is broken.`,
		Example: `  lockstep audit verify

  # every night: keep the head, and check that of the night before
  lockstep audit verify -o json | jq -r .head
  lockstep audit verify --head 9f2c41b1c0ffee00112233445566778899aabbccddeeff00112233445566778899`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var kept *audit.Hash
			if cmd.Flags().Changed("head") {
				kept = &audit.Hash{}
				if err := kept.UnmarshalText([]byte(head)); err != nil {
					return usageError{fmt.Errorf("--head: %w", err)}
				}
			}
			var v audit.Verified
			err := a.withAudit(cmd.Context(), func(ctx context.Context, o *office) (err error) {
				v, err = audit.Verify(ctx, o.log, o.cfg.Prefix, kept)
				return err
			})
			if errors.Is(err, errNoAudit) {
				if kept != nil {
					return unwellError{[]string{"there is no audit log, and there was one when that head was kept"}}
				}
				return errors.New("there is no audit log yet: nobody has done anything")
			}
			if err != nil {
				return err
			}
			if err := a.show(v, func(w io.Writer) { printVerified(w, v) }); err != nil {
				return err
			}
			if len(v.Breaks) > 0 {
				return unwellError{[]string{fmt.Sprintf("the audit log is broken at %s", count(len(v.Breaks), "place"))}}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&head, "head", "", "a head that was kept from an earlier time and must still be in the log")
	return cmd
}

func printVerified(w io.Writer, v audit.Verified) {
	fmt.Fprintf(w, "records\t%d\nlate\t%d\nhead\t%s\n", v.Records, v.Late, v.Head)
	for _, b := range v.Breaks {
		if b.Offset < 0 {
			fmt.Fprintf(w, "BROKEN\t%s\n", b.Problem)
			continue
		}
		fmt.Fprintf(w, "BROKEN\toffset %d, written %s: %s\n", b.Offset, b.Time.UTC().Format(time.RFC3339), b.Problem)
	}
}
