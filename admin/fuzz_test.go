package admin

import (
	"net/http"
	"net/url"
	"testing"
	"time"
)

// What a request says, in its query, its headers and its body, is read or refused as a
// problem of the one who asks.
func FuzzARequestOfAnyBytes(f *testing.F) {
	at := time.Date(2026, 11, 22, 8, 15, 30, 0, time.UTC)
	f.Add("limit=5&table=bank.questions&cursor="+cursor{at, "es-1", listOf(map[string]string{"table": "bank.questions"})}.String(), `{"reason":"known","letters":["es-1"]}`, `"0123456789abcdef", *`)
	f.Add("limit=0&limit=1", `{"reason":1}`, `W/"x"`)
	f.Add("cursor=e30", ` {} {}`, ``)
	known := []Param{{Name: "table"}, {Name: "limit"}, {Name: "cursor"}}
	f.Fuzz(func(t *testing.T, query, body, tags string) {
		asker := func(err error) {
			if err != nil && (problemOf(err).Status < 400 || problemOf(err).Status > 499) {
				t.Fatalf("the fault of the one who asks is a %d: %v", problemOf(err).Status, err)
			}
		}
		r := &Request{Request: &http.Request{URL: &url.URL{RawQuery: query}, Header: http.Header{"If-Match": {tags}}}, body: []byte(body)}
		var v struct {
			Reason  string   `json:"reason"`
			Letters []string `json:"letters"`
		}
		asker(r.Decode(&v))
		asker(r.Tag(v))
		p, err := r.page(known, 100)
		asker(err)
		if err != nil {
			return
		}
		if p.limit < 1 || p.limit > pageMost {
			t.Fatalf("%q is a page of %d", query, p.limit)
		}
		list, next := cut([]string{"a", "b", "c"}, p, func(id string) (time.Time, string) { return at, id })
		if len(list) > p.limit {
			t.Fatalf("a page of %d has %d", p.limit, len(list))
		}
		if next != "" {
			if _, err := parseCursor(next, listOf(p.fields)); err != nil {
				t.Fatalf("the cursor of a page is refused: %v", err)
			}
		}
	})
}
