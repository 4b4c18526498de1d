package main

import (
	"container/list"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
)

// crowd bounds how many connections a server has. When one more comes than there may be, the one
// is closed that says nothing for the longest time, so that nobody keeps others out, probes above
// all, by holding connections open. Where all of them are being answered, it is the new one.
type crowd struct {
	most int

	mu    sync.Mutex
	known map[net.Conn]*list.Element // nil for those that are being answered
	quiet list.List                  // those that are not, the longest first
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
	if was := c.known[conn]; was != nil {
		c.quiet.Remove(was)
	}
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(c.known, conn)
		return nil
	case http.StateActive:
		c.known[conn] = nil
		return nil
	}
	c.known[conn] = c.quiet.PushBack(conn)
	if len(c.known) <= c.most {
		return nil
	}
	out = c.quiet.Remove(c.quiet.Front()).(net.Conn)
	delete(c.known, out)
	return out
}
