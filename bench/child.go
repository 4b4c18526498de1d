package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"time"

	gomysql "github.com/go-mysql-org/go-mysql/mysql"
	"github.com/go-mysql-org/go-mysql/replication"
)

// The bare readers of the log are processes of their own, so that their CPU time
// and memory compare with Lockstep's.

// order is what a bare reader is told.
type order struct {
	Addr, User, Password string
	ServerID             uint32
	Table                string // of the database of the bench
	GTIDs                string // to begin behind
	Skip                 int    // rows to pass over
	Rows                 int    // rows to read behind those
	Delays               bool   // whether to measure the time from commit to here
}

// readerReport is what a bare reader tells when it has read its rows.
type readerReport struct {
	Rows    int
	Bytes   int64 // of all events read
	Seconds float64
	Usage   usageOf
	// P50 and P99 of the time from a commit to its row being here, in seconds.
	P50, P99 float64
}

// usageOf is what a process has used until now.
type usageOf struct {
	CPU    float64 // seconds, user and system
	PeakMB float64
}

// runChild is the whole life of a bare reader.
func runChild(role string, in io.Reader, out io.Writer) error {
	if role != "read" {
		return fmt.Errorf("no child does %q", role)
	}
	var o order
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return err
	}
	report, err := readLog(o, func() { fmt.Fprintln(out, "reading") })
	if err != nil {
		return err
	}
	if report.Usage, err = usageNow(os.Getpid()); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(report)
}

// readLog decodes the log as go-mysql does unless told otherwise, and counts.
func readLog(o order, reading func()) (readerReport, error) {
	host, portText, err := net.SplitHostPort(o.Addr)
	if err != nil {
		return readerReport{}, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return readerReport{}, err
	}
	syncer := replication.NewBinlogSyncer(replication.BinlogSyncerConfig{
		ServerID: o.ServerID, Flavor: "mysql", Host: host, Port: uint16(port), User: o.User, Password: o.Password,
		Logger: slog.New(slog.DiscardHandler),
	})
	defer syncer.Close()
	set, err := gomysql.ParseGTIDSet("mysql", o.GTIDs)
	if err != nil {
		return readerReport{}, err
	}
	streamer, err := syncer.StartSyncGTID(set)
	if err != nil {
		return readerReport{}, fmt.Errorf("ask %s for its log: %w", o.Addr, err)
	}
	began := time.Now()
	reading()

	var report readerReport
	var commit time.Time
	var delays []time.Duration
	seen := 0
	for seen < o.Skip+o.Rows {
		event, err := streamer.GetEvent(context.Background())
		if err != nil {
			return report, fmt.Errorf("read the log: %w", err)
		}
		report.Bytes += int64(event.Header.EventSize)
		switch e := event.Event.(type) {
		case *replication.GTIDEvent:
			commit = time.UnixMicro(int64(e.OriginalCommitTimestamp))
		case *replication.RowsEvent:
			if string(e.Table.Table) != o.Table || string(e.Table.Schema) != database {
				continue
			}
			seen += len(e.Rows)
			if event.Header.EventType == replication.UPDATE_ROWS_EVENTv2 || event.Header.EventType == replication.PARTIAL_UPDATE_ROWS_EVENT {
				seen -= len(e.Rows) / 2 // before and after
			}
			if o.Delays && seen > o.Skip {
				delays = append(delays, time.Since(commit))
			}
		}
	}
	report.Rows, report.Seconds = seen-o.Skip, time.Since(began).Seconds()
	slices.Sort(delays)
	report.P50, report.P99 = quantile(delays, .5).Seconds(), quantile(delays, .99).Seconds()
	return report, nil
}

// bareReader is a running child that reads the log.
type bareReader struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	closed bool
}

// startReader starts a bare reader and returns when the server has taken it on.
func (b *bench) startReader(ctx context.Context, o order) (*bareReader, error) {
	o.Addr, o.User, o.Password, o.ServerID = b.servers.mysql.Addr, b.servers.mysql.User, b.servers.mysql.Password, serverID(1)
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	r := &bareReader{cmd: exec.CommandContext(ctx, self, "-child", "read")}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r.cmd.Stderr = os.Stderr
	in, err := r.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	r.out = bufio.NewReader(out)
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the bare reader: %w", err)
	}
	_, err = in.Write(text)
	if err := errors.Join(err, in.Close()); err != nil {
		return nil, errors.Join(err, r.cmd.Wait())
	}
	if line, err := r.out.ReadString('\n'); line != "reading\n" {
		return nil, errors.Join(fmt.Errorf("the bare reader said %q: %w", line, err), r.cmd.Wait())
	}
	return r, nil
}

// report waits for the reader's end.
func (r *bareReader) report() (readerReport, error) {
	var report readerReport
	err := json.NewDecoder(r.out).Decode(&report)
	r.closed = true
	if err := errors.Join(r.cmd.Wait(), err); err != nil {
		return report, fmt.Errorf("the bare reader: %w", err)
	}
	return report, nil
}

// stop ends a reader whose report nobody waits for.
func (r *bareReader) stop() {
	if !r.closed {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
	}
}
