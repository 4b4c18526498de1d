package main

import (
	"bytes"
	"compress/gzip"
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// crowd bounds how many connections a server has. When one more comes than there may be, one of
// the larger half is closed, so that nobody keeps others out, probes above all: of those that say
// nothing, or of those that are being answered, the one that has done so for the longest time.
// Those that are meant to last, which their own limits keep few, stay.
type crowd struct {
	most int

	mu          sync.Mutex
	known       map[net.Conn]*list.Element // nil for those that stay
	quiet, busy list.List                  // the longest first
}

func newCrowd(most int) *crowd { return &crowd{most: most, known: map[net.Conn]*list.Element{}} }

// note is http.Server.ConnState.
func (c *crowd) note(conn net.Conn, state http.ConnState) {
	if out := c.move(conn, state); out != nil {
		if secure, ok := out.(*tls.Conn); ok {
			out = secure.NetConn() // it has nothing to say any more
		}
		out.Close()
	}
}

// move notes what a connection does, and gives one that is to be closed; nil for none.
func (c *crowd) move(conn net.Conn, state http.ConnState) (out net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave(conn)
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(c.known, conn)
		return nil
	case http.StateActive:
		c.known[conn] = c.busy.PushBack(conn)
	default:
		c.known[conn] = c.quiet.PushBack(conn)
	}
	if len(c.known) <= c.most {
		return nil
	}
	larger := &c.quiet
	if c.busy.Len() > c.quiet.Len() {
		larger = &c.busy
	}
	out = larger.Front().Value.(net.Conn)
	c.leave(out)
	delete(c.known, out)
	return out
}

func (c *crowd) leave(conn net.Conn) {
	if at := c.known[conn]; at != nil {
		c.quiet.Remove(at) // of the two the one that has it
		c.busy.Remove(at)
	}
}

type connKey struct{}

// with is http.Server.ConnContext.
func (c *crowd) with(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// stay has the connection of a request stay until it is answered, unless half of those that there may be do.
func (c *crowd) stay(r *http.Request) {
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	staying := len(c.known) - c.quiet.Len() - c.busy.Len()
	if _, known := c.known[conn]; known && staying < c.most/2 { // and not closed meanwhile
		c.leave(conn)
		c.known[conn] = nil
	}
}

const (
	// connectionsAtOnce is how many connections a server may have where the process may have files
	// enough. It is more than twice as many as there may be streams of events.
	connectionsAtOnce = 2048
	// answerWithin is how long who asks may take to take an answer, where nothing else is said.
	answerWithin = 10 * time.Second
	// scrapesAtOnce is how many answers with metrics may be under way at once, each of its own.
	scrapesAtOnce = 8
	// scrapeShared is how old an answer may be that is given to several, above that.
	scrapeShared = time.Second
)

// connectionsOf is how many connections a server may have in a process that may have so many files
// open: a quarter, so that two servers leave as many for Kafka, MySQL and the stores.
func connectionsOf(files uint64) int { return int(min(connectionsAtOnce, files/4)) }

// connections is that of this process.
func connections() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return connectionsAtOnce
	}
	return connectionsOf(files.Cur)
}

// scrapes answers with the metrics. An answer is there, whole, before it is sent, so that who does
// not take it holds up nobody; and where many are under way, several get the same one, so that
// those who do not are no load.
type scrapes struct {
	from prometheus.Gatherer

	mu       sync.Mutex
	underWay int
	newest   *scrape
}

// scrape is one answer.
type scrape struct {
	began time.Time
	made  sync.Once
	text  []byte
	err   error

	packed sync.Once
	small  []byte // the text by gzip
}

func (s *scrapes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	one := s.enter(time.Now())
	defer s.leave()
	one.made.Do(func() { one.text, one.err = gather(s.from) })
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerWithin)) // it may have waited
	if one.err != nil {
		http.Error(w, one.err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", string(textFormat))
	body := one.text
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		one.packed.Do(func() { one.small = pack(one.text) })
		w.Header().Set("Content-Encoding", "gzip")
		body = one.small
	}
	_, _ = w.Write(body)
}

func (s *scrapes) enter(now time.Time) *scrape {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underWay++; s.underWay <= scrapesAtOnce || now.Sub(s.newest.began) > scrapeShared {
		s.newest = &scrape{began: now}
	}
	return s.newest
}

func (s *scrapes) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.underWay--; s.underWay == 0 {
		s.newest = nil
	}
}

var textFormat = expfmt.NewFormat(expfmt.TypeTextPlain)

func gather(from prometheus.Gatherer) ([]byte, error) {
	families, err := from.Gather()
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	encode := expfmt.NewEncoder(&text, textFormat)
	for _, family := range families {
		if err := encode.Encode(family); err != nil {
			return nil, err
		}
	}
	return text.Bytes(), nil
}

func pack(text []byte) []byte {
	var small bytes.Buffer
	to := gzip.NewWriter(&small)
	_, _ = to.Write(text) // a buffer takes all
	_ = to.Close()
	return small.Bytes()
}
