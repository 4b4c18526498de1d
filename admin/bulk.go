package admin

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"lockstep/audit"
)

const (
	// ndjson is what a file of letters is.
	ndjson = "application/x-ndjson"
	// bulkLimit is how long a request with a large body or answer may take to carry it, and
	// stallLimit how long who sends or takes it may do nothing.
	bulkLimit, stallLimit = 10 * time.Minute, 15 * time.Second
	// bulkAtOnce bounds those under way, and with that what their files take.
	bulkAtOnce = 2
	// bulkWork is how long what such a request asks for may take: with its end in the audit
	// log it is over before another process takes it for cut off.
	bulkWork = audit.UnderWay - timeLimit
)

// lines is a body or an answer of a JSON object in each line.
type lines struct{}

// errCut says that an answer has begun and cannot be ended.
type errCut struct{ error }

func (e errCut) Unwrap() error { return e.error }

// room makes sure that few large requests are under way at once.
func (s *Server) room(r *Request) (leave func(), err error) {
	leave = func() { s.Load.bulk.Add(-1) }
	if s.Load.bulk.Add(1) > bulkAtOnce {
		leave()
		return nil, &limited{problem(http.StatusTooManyRequests, "busy", "%d exports and imports are under way in this process; try again when one is over, or ask another process", bulkAtOnce), 5 * time.Second}
	}
	s.stay(r)
	return leave, nil
}

// stall is how long the other side may do nothing.
func (s *Server) stall() time.Duration { return cmp.Or(s.patience, stallLimit) }

// lay keeps the body of a request in a file that has no name any more, so that it can be
// read twice and is gone with the process. done gives its room back.
func (s *Server) lay(ctx context.Context, w http.ResponseWriter, r *Request) (done func(), err error) {
	large := func() error {
		return problem(http.StatusRequestEntityTooLarge, "body_too_large", "the body has more than %d bytes; export and import it in parts, by sink or table, or raise admin.import_bytes", s.ImportBytes)
	}
	if r.ContentLength > s.ImportBytes {
		return nil, large()
	}
	file, err := os.CreateTemp("", "lockstep-import-")
	if err != nil {
		return nil, fmt.Errorf("the body cannot be kept until it is checked: %w; see that the directory for temporary files is there and can be written to (TMPDIR)", err)
	}
	done = func() { file.Close() }
	if err := os.Remove(file.Name()); err != nil {
		done()
		return nil, err
	}
	sum := sha256.New()
	in := &inlet{from: http.MaxBytesReader(w, r.Body, s.ImportBytes), conn: http.NewResponseController(w), stall: s.stall()}
	in.until, _ = ctx.Deadline()
	n, err := io.Copy(io.MultiWriter(file, sum), in)
	if err == nil {
		r.file, r.sum = file, hex.EncodeToString(sum.Sum(nil))
		return done, nil
	}
	done()
	switch _, tooLarge := errors.AsType[*http.MaxBytesError](err); {
	case tooLarge:
		return nil, large()
	case in.err == nil:
		_, _ = io.Copy(io.Discard, in) // who still sends hears of it only behind the body
		return nil, fmt.Errorf("the body cannot be kept until it is checked: %w", err)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, problem(http.StatusRequestTimeout, "body_slow", "the body has stopped after %d bytes: nothing came for %s, or all of it took longer than %s; nothing was done", n, s.stall(), bulkLimit)
	}
	return nil, problem(http.StatusBadRequest, "body_invalid", "the body ends after %d bytes before it is over (%v); nothing was done", n, err)
}

// inlet reads from somebody who must not stop sending.
type inlet struct {
	from  io.Reader
	conn  *http.ResponseController
	stall time.Duration
	until time.Time
	err   error // of the other side
}

func (i *inlet) Read(b []byte) (n int, err error) {
	if err := i.conn.SetReadDeadline(earlier(time.Now().Add(i.stall), i.until)); err != nil {
		return 0, err
	}
	if n, err = i.from.Read(b); err != nil && err != io.EOF {
		i.err = err
	}
	return n, err
}

// stream gives an answer as it is made. One that cannot be ended is cut off, so that nobody
// takes a part of it for all.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, r *Request, route Route) error {
	if !r.ProtoAtLeast(1, 1) { // there the end of the connection is the end of the answer
		return problem(http.StatusHTTPVersionNotSupported, "http_version", "with %s nobody can tell a whole answer from one that was cut off; use HTTP/1.1 (a proxy before it may have to be told: proxy_http_version 1.1)", r.Proto)
	}
	leave, err := s.room(r)
	if err != nil {
		return err
	}
	defer leave()
	w.Header().Set("Content-Type", route.Gives)
	if r.Method == http.MethodHead {
		return nil
	}
	out := &outlet{to: w, conn: http.NewResponseController(w), stall: s.stall()}
	out.until, _ = ctx.Deadline()
	buffered := bufio.NewWriterSize(out, 64<<10)
	err = route.Stream(ctx, r, buffered)
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil && out.began {
		return errCut{err}
	}
	return err
}

// outlet writes to somebody who must not stop taking.
type outlet struct {
	to    io.Writer
	conn  *http.ResponseController
	stall time.Duration
	until time.Time
	began bool
}

func (o *outlet) Write(b []byte) (int, error) {
	o.began = true
	if err := o.conn.SetWriteDeadline(earlier(time.Now().Add(o.stall), o.until)); err != nil {
		return 0, err
	}
	return o.to.Write(b)
}

func earlier(a, b time.Time) time.Time {
	if b.IsZero() || a.Before(b) {
		return a
	}
	return b
}
