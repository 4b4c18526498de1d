package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tidwall/gjson"
	"golang.org/x/sync/errgroup"
)

// The bare loop of Elasticsearch.
const (
	bulkDocs    = 1000
	bulkWorkers = 2
)

// readPublished reads the records that the capture has written, for the bare loops.
func (b *bench) readPublished(ctx context.Context) error {
	b.say("reading the published rows for the bare loops")
	p, err := b.pipeline(backlog)
	if err != nil {
		return err
	}
	return b.readDocuments(ctx, p.topic)
}

// measureSearch writes the backlog's rows with a bare loop and lets lockstep drain
// it.
func (b *bench) measureSearch(ctx context.Context) error {
	p, err := b.pipeline(backlog)
	if err != nil {
		return err
	}
	warm, bareIndex := b.name+"-warm", b.name+"-bare"
	for _, index := range []string{warm, bareIndex} {
		if err := b.copyIndex(ctx, p.index, index); err != nil {
			return err
		}
	}
	b.say("search: warming Elasticsearch up, not measured")
	if _, err := b.bulkLoop(ctx, warm, 0, max(b.rows/4, min(b.rows, 50_000))); err != nil {
		return err
	}
	if err := b.deleteIndex(ctx, warm); err != nil {
		return err
	}
	// Elasticsearch gets faster while its code is compiled, so one half of the bare
	// loop is before lockstep and the other behind it.
	b.say("search: a bare loop of _bulk requests, %d documents each, %d at a time, first half", bulkDocs, bulkWorkers)
	bare, err := b.bulkLoop(ctx, bareIndex, 0, b.rows/2)
	if err != nil {
		return err
	}
	b.say("search: lockstep drains the topic")
	d, err := b.drainSink(ctx, p, search)
	if err != nil {
		return err
	}
	b.say("search: the second half of the bare loop")
	second, err := b.bulkLoop(ctx, bareIndex, b.rows/2, b.rows)
	if err != nil {
		return err
	}
	bare = bareLoop{operations: bare.operations + second.operations, took: bare.took + second.took, cpu: bare.cpu + second.cpu}
	if err := errors.Join(b.wantDocuments(ctx, p.index, b.inserts()+1), b.wantDocuments(ctx, bareIndex, b.inserts())); err != nil {
		return err
	}
	b.reportSink(search, "docs", d, bare)
	return nil
}

// bareLoop is what a bare loop did and used.
type bareLoop struct {
	operations int
	took       time.Duration
	cpu        float64
	storeCPU   float64 // where it was measured
}

// measure times a loop of this process.
func measure(operations int, loop func() error) (bareLoop, error) {
	before, err := usageNow(os.Getpid())
	if err != nil {
		return bareLoop{}, err
	}
	began := time.Now()
	if err := loop(); err != nil {
		return bareLoop{}, err
	}
	took := time.Since(began)
	after, err := usageNow(os.Getpid())
	return bareLoop{operations: operations, took: took, cpu: after.CPU - before.CPU}, err
}

// drainSink runs a sink until every row change has come to an end in it.
func (b *bench) drainSink(ctx context.Context, p *pipeline, sink string) (drained, error) {
	before, err := b.storeCPU(ctx, sink)
	if err != nil {
		return drained{}, err
	}
	c, err := b.start(p, "sink", sink)
	if err != nil {
		return drained{}, err
	}
	d, err := c.drain(ctx, "row changes settled in "+sink, b.rows, func(m metrics) int { return m.settled(sink) })
	if err != nil {
		return d, err
	}
	after, err := b.storeCPU(ctx, sink)
	if err != nil {
		return d, err
	}
	d.storeCPU = after - before
	for _, outcome := range []string{"dead", "filtered"} {
		if n := d.metrics.outcome(sink, outcome); n != 0 {
			return d, fmt.Errorf("sink %s: %d row changes were %s", sink, n, outcome)
		}
	}
	return d, nil
}

// storeCPU is the CPU time that the process of a store has used, in seconds, as it says
// itself.
func (b *bench) storeCPU(ctx context.Context, sink string) (float64, error) {
	if sink == search {
		answer, err := b.elastic(ctx, http.MethodGet, "/_nodes/_local/stats/process?filter_path=nodes.*.process.cpu.total_in_millis", "", nil)
		millis := gjson.GetBytes(answer, "nodes.*.process.cpu.total_in_millis")
		if err == nil && !millis.Exists() {
			err = fmt.Errorf("the node does not tell its CPU time: %s", answer)
		}
		return millis.Float() / 1000, err
	}
	info, err := b.redis.Info(ctx, "cpu").Result()
	if err != nil {
		return 0, err
	}
	total := 0.0
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name == "used_cpu_user" || name == "used_cpu_sys" {
			seconds, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0, fmt.Errorf("INFO cpu: %s: %w", line, err)
			}
			total += seconds
		}
	}
	return total, nil
}

// reportSink sets what a sink sent beside what the bare loop sent. Changes that a
// newer one of the same row overtook in a batch were not sent, and are said.
func (b *bench) reportSink(sink, unit string, d drained, bare bareLoop) {
	superseded := d.metrics.outcome(sink, "superseded")
	sent := float64(b.rows - superseded)
	b.beside(sink+"."+unit, sent/d.took.Seconds(), unit+"/s", float64(bare.operations)/bare.took.Seconds())
	b.beside(sink+".sent", sent, unit, float64(bare.operations))
	b.beside(sink+".cpu", d.usage.CPU, "CPU s", bare.cpu)
	b.beside(sink+".cpu_beside_store", d.usage.CPU, "CPU s", d.storeCPU)
	b.add(sink+".rows", float64(b.rows)/d.took.Seconds(), "rows/s")
	b.add(sink+".superseded", float64(superseded), "rows")
	b.add(sink+".stale", float64(d.metrics.outcome(sink, "stale")+d.metrics.outcome(sink, "duplicate")), "rows")
	b.add(sink+".peak_memory", d.usage.PeakMB, "MB")
	b.add(sink+".start", d.start.Seconds(), "s")
}

// bulkLoop sends some of the documents to an index, as fast as Elasticsearch takes
// them. A document that a newer version has overtaken is taken, too.
func (b *bench) bulkLoop(ctx context.Context, index string, first, end int) (bareLoop, error) {
	return measure(end-first, func() error {
		var next atomic.Int64
		workers, ctx := errgroup.WithContext(ctx)
		for range bulkWorkers {
			workers.Go(func() error {
				var body []byte
				for ctx.Err() == nil {
					from := first + (int(next.Add(1))-1)*bulkDocs
					if from >= end {
						return nil
					}
					body = body[:0]
					for i := from; i < min(from+bulkDocs, end); i++ {
						body = b.docs.appendBulk(body, i)
					}
					answer, err := b.elastic(ctx, http.MethodPost, "/"+index+"/_bulk?filter_path=errors,items.*.status", "application/x-ndjson", body)
					if err != nil {
						return err
					}
					if err := checkBulk(answer); err != nil {
						return err
					}
				}
				return ctx.Err()
			})
		}
		return workers.Wait()
	})
}

func (d *documents) appendBulk(body []byte, i int) []byte {
	doc := d.at[i]
	body = append(body, `{"index":{"_id":"`...)
	body = strconv.AppendInt(body, int64(doc.id), 10)
	body = append(body, `","version":`...)
	body = strconv.AppendUint(body, doc.version, 10)
	body = append(body, `,"version_type":"external"}}`+"\n"...)
	body = append(body, bytes.TrimSuffix(d.row(i), []byte("}"))...)
	body = append(body, `,"_lockstep":{"v":`...)
	body = strconv.AppendUint(body, doc.version, 10)
	return append(body, "}}\n"...)
}

// checkBulk wants every document taken, or in conflict with a newer version.
func checkBulk(answer []byte) error {
	if !gjson.GetBytes(answer, "errors").Bool() {
		return nil
	}
	for _, status := range gjson.GetBytes(answer, "items.#.index.status").Array() {
		if code := status.Int(); code != 200 && code != 201 && code != 409 {
			return fmt.Errorf("_bulk: a document was answered with %d", code)
		}
	}
	return nil
}

// copyIndex makes an empty index with the mapping and settings of another.
func (b *bench) copyIndex(ctx context.Context, from, to string) error {
	answer, err := b.elastic(ctx, http.MethodGet, "/"+from, "", nil)
	if err != nil {
		return err
	}
	var found map[string]struct {
		Mappings json.RawMessage `json:"mappings"`
		Settings struct {
			Index map[string]json.RawMessage `json:"index"`
		} `json:"settings"`
	}
	if err := json.Unmarshal(answer, &found); err != nil {
		return fmt.Errorf("look at index %s: %w", from, err)
	}
	for _, index := range found {
		for _, own := range []string{"uuid", "version", "creation_date", "provided_name"} {
			delete(index.Settings.Index, own)
		}
		body, err := json.Marshal(map[string]any{"mappings": index.Mappings, "settings": index.Settings})
		if err != nil {
			return err
		}
		_, err = b.elastic(ctx, http.MethodPut, "/"+to, "application/json", body)
		return err
	}
	return fmt.Errorf("there is no index %s", from)
}

func (b *bench) deleteIndex(ctx context.Context, index string) error {
	_, err := b.elastic(ctx, http.MethodDelete, "/"+index, "", nil)
	return err
}

// wantDocuments counts what a search sees.
func (b *bench) wantDocuments(ctx context.Context, index string, want int) error {
	if _, err := b.elastic(ctx, http.MethodPost, "/"+index+"/_refresh", "", nil); err != nil {
		return err
	}
	answer, err := b.elastic(ctx, http.MethodGet, "/"+index+"/_count", "", nil)
	if err != nil {
		return err
	}
	if got := int(gjson.GetBytes(answer, "count").Int()); got != want {
		return fmt.Errorf("index %s has %d documents, want %d", index, got, want)
	}
	return nil
}

// elastic makes one request and returns the answer, or an error when it is no
// success.
func (b *bench) elastic(ctx context.Context, method, path, kind string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, b.servers.elastic.URL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if kind != "" {
		request.Header.Set("Content-Type", kind)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if response.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %.300s", method, path, response.Status, answer)
	}
	return answer, nil
}
