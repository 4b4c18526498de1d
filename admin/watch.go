package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"time"
)

const (
	eventStream = "text/event-stream"
	// watchersAtOnce bounds how many streams of events a process serves.
	watchersAtOnce = 1000
	// eventWithin is how long who watches may take to take an event.
	eventWithin = 10 * time.Second
	// watchLimit is how long one stream lasts: who watches comes again by itself, and shows
	// its token then.
	watchLimit = time.Hour
)

// accepts reports whether a request names a media type as one that it takes.
func (r *Request) accepts(kind string) bool {
	for _, list := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(list, ",") {
			if named, _, err := mime.ParseMediaType(part); err == nil && named == kind {
				return true
			}
		}
	}
	return false
}

// watch sends events until who watches goes away or does not take them. What is wrong with
// the request is answered as everywhere, before the first event.
func (s *Server) watch(w http.ResponseWriter, r *Request, route Route) error {
	defer s.Load.watchers.Add(-1)
	if s.Load.watchers.Add(1) > watchersAtOnce {
		return problem(http.StatusServiceUnavailable, "busy", "%d watch already, which is as many as this process serves; ask another one, or use the parameter wait", watchersAtOnce)
	}
	s.stay(r)
	ctx, stop := context.WithTimeout(r.Context(), watchLimit)
	defer stop()
	conn, began := http.NewResponseController(w), false
	err := route.Watch(ctx, r, func(id string, v any) error {
		body, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if err := conn.SetWriteDeadline(time.Now().Add(eventWithin)); err != nil {
			return fmt.Errorf("this connection cannot stream: %w", err)
		}
		var event bytes.Buffer
		if !began {
			w.Header().Set("Content-Type", eventStream)
			began = true
			fmt.Fprintf(&event, "retry: 1000\n") // ms until a client that was cut off comes again
		}
		fmt.Fprintf(&event, "id: %s\nevent: %s\ndata: %s\n\n", strings.Trim(etagOf([]byte(id)), `"`), route.ID, body)
		if _, err := w.Write(event.Bytes()); err != nil {
			return err
		}
		return conn.Flush()
	})
	if began {
		return nil // who watches has gone away, and nobody is there to be told
	}
	return err
}
