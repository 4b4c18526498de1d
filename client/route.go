package client

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// Route knows where a table is to be read that a sink has, as Lockstep says: for a gateway
// that reads from the sink, and from MySQL while the sink cannot be trusted.
//
// It keeps the last answer and uses it while that is usable, also when Lockstep cannot be
// asked. Without a usable answer everything is read from MySQL.
type Route struct {
	Client *Client
	// Table is db.table.
	Table, Sink string

	mu     sync.Mutex
	share  int
	etag   string
	until  time.Time // by this machine's clock
	reason string
}

// routeWait is how long one request waits for news.
const routeWait = 20 * time.Second

// ReadsSink reports whether the row of a key, or whatever else readers are told apart by, is
// to be read from the sink now. A key that may stays until the sink cannot be trusted again.
func (r *Route) ReadsSink(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.until) && int(crc32.ChecksumIEEE([]byte(key))%100) < r.share
}

// Why says why not everything is read from the sink; empty when it is.
func (r *Route) Why() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !time.Now().Before(r.until) {
		return "there is no usable answer of Lockstep"
	}
	return r.reason
}

// Run follows the route until ctx ends, and then returns nil. When Lockstep does not answer
// it tries again.
func (r *Route) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := r.ask(ctx); err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	return nil
}

// ask asks once, and waits for news when there was an answer.
func (r *Route) ask(ctx context.Context) error {
	r.mu.Lock()
	etag, until := r.etag, r.until
	r.mu.Unlock()
	query := url.Values{"sink": {r.Sink}}
	if etag != "" {
		// No longer than half of what is left, so that the answer stays usable.
		query.Set("wait", min(routeWait, max(0, time.Until(until)/2)).String())
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.Client.URL+"/v1/route/"+url.PathEscape(r.Table)+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("If-None-Match", etag)
	res, err := r.Client.do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	came := time.Now()
	text, err := io.ReadAll(io.LimitReader(res.Body, answerBytes))
	if err != nil {
		return err
	}
	usable, err := strconv.ParseFloat(res.Header.Get("Lockstep-Usable-Seconds"), 64)
	if err != nil || res.StatusCode != http.StatusOK && res.StatusCode != http.StatusNotModified {
		return fmt.Errorf("ask where to read %s: %s", r.Table, res.Status)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if res.StatusCode == http.StatusOK {
		var a struct {
			Sinks []struct {
				Share  int    `json:"share"`
				Reason string `json:"reason"`
			} `json:"sinks"`
		}
		if err := json.Unmarshal(text, &a); err != nil || len(a.Sinks) != 1 {
			return fmt.Errorf("ask where to read %s: no answer for one sink: %.200s", r.Table, text)
		}
		r.share, r.reason, r.etag = a.Sinks[0].Share, a.Sinks[0].Reason, res.Header.Get("ETag")
	}
	r.until = came.Add(time.Duration(usable * float64(time.Second)))
	return nil
}
