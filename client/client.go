// Package client asks a running Lockstep whether a row is in a store yet, so that an
// application reads what it has written.
//
// What a call costs: one HTTP request; without a GTID one short query of the source, which
// callers at the same moment share; one record in a topic of Kafka, and those that the capture
// and the workers answer with, which callers share, too. It takes as long as the pipeline
// needs for the row, and a few milliseconds more; docs/freshness.md has the figures. A row
// that was there before costs the same: ask after a write, not at every read.
package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Client asks one Lockstep. Any process of a pipeline that has an address will do.
type Client struct {
	// URL is where its admin.listen is reached, such as http://lockstep:8080.
	URL string
	// Token is one of admin.tokens, a viewer's; empty where none is needed.
	Token string
	// HTTP is what requests are made with; nil is for http.DefaultClient. Its timeout must
	// be longer than what is waited for.
	HTTP *http.Client
}

// State says how fresh a row is.
type State string

const (
	Applied      State = "applied"       // it is there as the transaction left it, or newer
	Pending      State = "pending"       // it is on its way
	DeadLettered State = "dead-lettered" // the store has refused it
	Unknown      State = "unknown"       // nobody is heard of who would know
)

// Row is the answer for one row.
type Row struct {
	State State  `json:"state"`
	GTIDs string `json:"gtids"` // what was waited for
	// WaitsFor says for what a row waits that is Pending or Unknown.
	WaitsFor []string `json:"waits_for"`
	// Letter is the dead letter of a row that is DeadLettered.
	Letter *struct {
		ID     string `json:"id"`
		Reason string `json:"reason"`
	} `json:"letter"`
}

// Fresh asks whether a row is in a sink as the transactions gtids left it, and waits for
// that up to wait. Without gtids it asks for all that is committed when the request comes.
// The table is db.table, the key the primary key as text, exactly as the row has it.
func (c *Client) Fresh(ctx context.Context, sink, table, key, gtids string, wait time.Duration) (Row, error) {
	query := url.Values{"wait": {wait.String()}}
	if gtids != "" {
		query.Set("gtid", gtids)
	}
	var row Row
	path := "/v1/freshness/" + url.PathEscape(sink) + "/" + url.PathEscape(table) + "/" + url.PathEscape(key)
	return row, c.get(ctx, path, query, &row)
}

// Barrier is the answer for everything.
type Barrier struct {
	// Visible says that everything is in the sinks.
	Visible bool   `json:"visible"`
	GTIDs   string `json:"gtids"`
	Sinks   []struct {
		Sink    string `json:"sink"`
		Settled bool   `json:"settled"`
		Visible bool   `json:"visible"`
		// Letters counts open dead letters, by table.
		Letters  map[string]int `json:"letters"`
		WaitsFor []string       `json:"waits_for"`
	} `json:"sinks"`
}

// Await waits until everything that was committed before it is in a sink, or in all when
// sink is empty, as far as it touches a table, or all when table is empty; up to wait.
func (c *Client) Await(ctx context.Context, sink, table, gtids string, wait time.Duration) (Barrier, error) {
	query := url.Values{"timeout": {wait.String()}}
	for name, value := range map[string]string{"sink": sink, "table": table, "gtid": gtids} {
		if value != "" {
			query.Set(name, value)
		}
	}
	var b Barrier
	return b, c.get(ctx, "/v1/barrier", query, &b)
}

// answerBytes bounds what is read of an answer.
const answerBytes = 8 << 20

func (c *Client) get(ctx context.Context, path string, query url.Values, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	res, err := c.do(req)
	if err != nil {
		return fmt.Errorf("ask lockstep: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, answerBytes))
	if err != nil {
		return fmt.Errorf("ask lockstep: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		var problem struct {
			Detail string `json:"detail"`
		}
		if json.Unmarshal(body, &problem) != nil || problem.Detail == "" {
			problem.Detail = string(body[:min(len(body), 200)])
		}
		return fmt.Errorf("ask lockstep: %s: %s", res.Status, problem.Detail)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("ask lockstep: its answer cannot be read: %w", err)
	}
	return nil
}

// do sends a request with the token.
func (c *Client) do(req *http.Request) (*http.Response, error) {
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	if c.HTTP != nil {
		return c.HTTP.Do(req)
	}
	return http.DefaultClient.Do(req)
}
