package client_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"lockstep/client"
)

// shop is an application that writes to MySQL and reads from Elasticsearch.
type shop struct {
	lockstep *client.Client
	write    func(id, title string) (gtid string) // commits, and gives the transaction's GTID
	mysql    func(id string) string
	search   func(id string) string
}

// ServeHTTP changes an article, or shows it. Whoever has changed one is given the GTID of that
// in a cookie. As long as he has it he reads from the index only what has come there, and from
// MySQL what has not.
func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("id")
	if r.Method == http.MethodPost {
		gtid := s.write(id, r.FormValue("title"))
		http.SetCookie(w, &http.Cookie{Name: "written", Value: gtid, MaxAge: 60})
		return
	}
	written, err := r.Cookie("written")
	if err != nil { // he has written nothing: what the index has will do
		fmt.Fprint(w, s.search(id))
		return
	}
	row, err := s.lockstep.Fresh(r.Context(), "search", "shop.articles", id, written.Value, 200*time.Millisecond)
	if err != nil || row.State != client.Applied { // pending, refused, or nobody knows
		fmt.Fprint(w, s.mysql(id))
		return
	}
	fmt.Fprint(w, s.search(id))
}

// A handler that reads its own writes.
func ExampleClient_Fresh() {
	// In place of a Lockstep, one whose index is behind at first.
	states := []client.State{client.Pending, client.Applied}
	lockstep := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"state": %q, "gtids": %q}`, states[0], r.FormValue("gtid"))
		states = states[1:]
	}))
	defer lockstep.Close()
	index := "the old title"
	application := httptest.NewServer(&shop{
		lockstep: &client.Client{URL: lockstep.URL},
		write:    func(id, title string) string { return "3e11fa47-71ca-11e1-9e33-c80aa9429562:23" },
		mysql:    func(id string) string { return "the new title, from MySQL" },
		search:   func(id string) string { return index + ", from Elasticsearch" },
	})
	defer application.Close()

	show := func(cookies ...*http.Cookie) {
		req, _ := http.NewRequest(http.MethodGet, application.URL+"?id=7", nil)
		for _, c := range cookies {
			req.AddCookie(c)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			fmt.Println(err)
			return
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		fmt.Println(string(text))
	}
	res, err := http.Post(application.URL+"?id=7&title=the+new+title", "text/plain", nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	res.Body.Close()
	show() // somebody else
	show(res.Cookies()...)
	index = "the new title"
	show(res.Cookies()...)

	// Output:
	// the old title, from Elasticsearch
	// the new title, from MySQL
	// the new title, from Elasticsearch
}
