package testenv

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Relay is an address behind which one server or another answers.
type Relay struct {
	Addr string
	dial func(target string) (net.Conn, error)

	mu     sync.Mutex
	target string
	frozen chan struct{} // closed while bytes flow
	conns  map[net.Conn]bool
}

// NewRelay listens until the end of the test and passes connections on to target.
func NewRelay(t testing.TB, target string) *Relay {
	t.Helper()
	return newRelay(t, target, func(target string) (net.Conn, error) { return net.DialTimeout("tcp", target, 5*time.Second) })
}

func newRelay(t testing.TB, target string, dial func(target string) (net.Conn, error)) *Relay {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	flows := make(chan struct{})
	close(flows)
	r := &Relay{Addr: l.Addr().String(), dial: dial, target: target, frozen: flows, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); r.Thaw(); r.Cut() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go r.pass(conn)
		}
	}()
	return r
}

func (r *Relay) pass(in net.Conn) {
	defer in.Close()
	r.mu.Lock()
	target := r.target
	r.mu.Unlock()
	out, err := r.dial(target)
	if err != nil {
		return
	}
	defer out.Close()
	r.mu.Lock()
	r.conns[in], r.conns[out] = true, true
	r.mu.Unlock()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			_, _ = io.Copy(way[1], flow{r, way[0]})
			done <- struct{}{}
		}()
	}
	<-done
	r.mu.Lock()
	delete(r.conns, in)
	delete(r.conns, out)
	r.mu.Unlock()
}

// flow reads nothing while the relay is frozen.
type flow struct {
	r *Relay
	c net.Conn
}

func (f flow) Read(p []byte) (int, error) {
	n, err := f.c.Read(p)
	f.r.mu.Lock()
	frozen := f.r.frozen
	f.r.mu.Unlock()
	<-frozen
	return n, err
}

// Point passes new connections on to another target, and cuts the others.
func (r *Relay) Point(target string) {
	r.mu.Lock()
	r.target = target
	r.mu.Unlock()
	r.Cut()
}

// Cut ends every connection.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
}

// Freeze keeps the connections open and lets nothing through, as a machine that
// has lost its power does. Connections made later are frozen, too.
func (r *Relay) Freeze() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.frozen = make(chan struct{})
}

// Thaw lets bytes flow again.
func (r *Relay) Thaw() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.frozen:
	default:
		close(r.frozen)
	}
}
