package admin

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"lockstep/audit"
	"lockstep/dlq"
)

// Export gives a line for each letter, and fails where the shelf does, behind what it has
// written.
func (s *shelf) Export(ctx context.Context, letters []dlq.Letter, to io.Writer) error {
	for _, l := range letters {
		if _, err := fmt.Fprintf(to, "%s %s\n", l.ID, s.padding); err != nil {
			return err
		}
		if s.between != nil {
			s.between(ctx)
		}
	}
	return s.broken
}

// Arriving takes lines of "letter N", and leaves letter 3 out.
func (s *shelf) Arriving(ctx context.Context, file io.ReadSeeker) (found []dlq.Found, err error) {
	if s.between != nil {
		s.between(ctx)
	}
	if s.unplaced {
		return nil, fmt.Errorf("%w of the pipeline shop", dlq.ErrNoPosition)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(file)
	for n := 1; lines.Scan(); n++ {
		id, ok := strings.CutPrefix(lines.Text(), "letter ")
		if !ok {
			return nil, &dlq.LineError{Line: n, Err: errors.New("it is no letter")}
		}
		f := dlq.Found{ID: "search-" + id, Sink: "search", Table: "bank.questions", Key: id}
		if id == "3" {
			f.Kept = "it is open already"
		}
		found = append(found, f)
	}
	return found, lines.Err()
}

func (s *shelf) Import(_ context.Context, file io.ReadSeeker, found []dlq.Found, done func(int)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range found {
		if s.fail != nil && i == 1 {
			return s.fail
		}
		if f.Kept == "" {
			s.imported = append(s.imported, f.ID)
			done(i)
		}
	}
	return nil
}

// serve has the API listen, with the time limits of a real process or shorter ones.
func (a *api) serve(read time.Duration) *httptest.Server {
	a.t.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { a.handler.ServeHTTP(w, r) }))
	server.Config.ReadTimeout, server.Config.WriteTimeout = read, 2*read
	server.Start()
	a.t.Cleanup(server.Close)
	return server
}

const importPath, lineType = "/v1/dlq/import?reason=lost", "Content-Type: application/x-ndjson"

// send sends a request to a server that listens.
func (a *api) send(server *httptest.Server, method, path, token string, body io.Reader, headers ...string) answer {
	a.t.Helper()
	r, err := http.NewRequestWithContext(a.t.Context(), method, server.URL+path, body)
	if err != nil {
		a.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	res, err := server.Client().Do(r)
	if err != nil {
		a.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.read(method, path, res.StatusCode, text, res.Header)
}

func (a *api) importing(server *httptest.Server, id, path, text string) answer {
	a.t.Helper()
	return a.send(server, "POST", path, operator, strings.NewReader(text), lineType, "X-Request-ID: "+id)
}

// The letters of an export are those that a list with the same parameters has.
func TestLettersAreExportedToOperatorsAsTheyAreListed(t *testing.T) {
	a := newAPI(t)
	server := a.serve(time.Minute)
	got := a.send(server, "GET", "/v1/dlq/export?key=2", operator, nil)
	if got.status != 200 || string(got.body) != "search-2 \n" || got.header.Get("Content-Type") != ndjson || a.shelf.asked.Key != "2" {
		t.Errorf("%+v %s", got, got.body)
	}
	if got := a.send(server, "GET", "/v1/dlq/export?key=none", operator, nil); got.status != 200 || len(got.body) != 0 {
		t.Errorf("none: %+v", got)
	}
	if got := a.send(server, "HEAD", "/v1/dlq/export", operator, nil); got.status != 200 || got.header.Get("Content-Type") != ndjson {
		t.Errorf("HEAD: %+v", got)
	}
	for path, want := range map[string]string{
		"/v1/dlq/export?tabel=x":          "400 parameter_unknown",
		"/v1/dlq/export?limit=1":          "400 parameter_unknown",
		"/v1/dlq/export?since=monday":     "400 parameter_invalid",
		"/v1/dlq/export?table=shop.gone":  "400 parameter_invalid",
		"/v1/dlq/export?sink=a&sink=b":    "400 parameter_invalid",
		"/v1/dlq/export?sink=search&key=": "400 parameter_invalid",
	} {
		if got := a.send(server, "GET", path, operator, nil); fmt.Sprint(got.status, " ", got.code) != want {
			t.Errorf("%s: %d %s, want %s", path, got.status, got.code, want)
		}
	}
	// What is shown to a viewer has masked values veiled, which an export cannot have.
	if got := a.send(server, "GET", "/v1/dlq/export", viewer, nil); got.status != 403 || got.code != "role_viewer" || strings.Contains(string(got.body), "search-") {
		t.Errorf("a viewer gets %+v", got)
	}
	a.config = Config{}
	a.restart()
	if got := a.ask("GET", "http://localhost/v1/dlq/export", "", ""); got.status != 403 || got.code != "not_writable" {
		t.Errorf("without tokens: %+v", got)
	}
}

// Whoever reads an export that fails sees that: before it begins as a problem, and behind
// that as an answer that has no end.
func TestAnExportThatFailsIsNeverTakenForAWholeOne(t *testing.T) {
	a := newAPI(t)
	server := a.serve(time.Minute)
	a.shelf.broken = errors.New("the broker is gone")
	if got := a.send(server, "GET", "/v1/dlq/export", operator, nil); got.status != 500 || got.detail != "the broker is gone" {
		t.Errorf("%+v", got)
	}
	a.shelf.padding = strings.Repeat("x", 100<<10)
	r, _ := http.NewRequestWithContext(t.Context(), "GET", server.URL+"/v1/dlq/export", nil)
	r.Header.Set("Authorization", "Bearer "+operator)
	res, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if !errors.Is(err, io.ErrUnexpectedEOF) || res.StatusCode != 200 || !bytes.HasPrefix(text, []byte("search-0 x")) {
		t.Errorf("%s, %d bytes, %v", res.Status, len(text), err)
	}
	if n := a.requests("exportLetters", "cut"); n != 1 {
		t.Errorf("%v are counted", n)
	}
	// In HTTP/1.0 the end of the connection is the end of the answer.
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/dlq/export HTTP/1.0\r\nAuthorization: Bearer %s\r\n\r\n", operator)
	old, err := io.ReadAll(conn)
	if err != nil || !bytes.Contains(old, []byte(" 505 ")) || bytes.Contains(old, []byte("search-")) {
		t.Errorf("%s, %v", old, err)
	}
}

// An export goes on past the time that a request may take to be read, and whoever takes
// nothing of it is cut off.
func TestAnExportWaitsForItsClientAndNotForEver(t *testing.T) {
	a := newAPI(t)
	server := a.serve(300 * time.Millisecond)
	a.shelf.between = a.takes(200 * time.Millisecond)
	if got := a.send(server, "GET", "/v1/dlq/export", operator, nil); got.status != 200 || bytes.Count(got.body, []byte("\n")) != 5 {
		t.Errorf("%+v", got)
	}
	a.shelf.between, a.shelf.padding, a.server.patience = nil, strings.Repeat("x", 8<<20), 100*time.Millisecond // more than a socket takes
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/dlq/export HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n", operator)
	for deadline := time.Now().Add(2 * time.Minute); a.requests("exportLetters", "cut") == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("whoever takes nothing is waited for")
		}
	}
}

func TestLettersAreImportedOnceForARequest(t *testing.T) {
	a := newAPI(t)
	server := a.serve(time.Minute)
	const text = "letter 1\nletter 2\nletter 3\n"
	would := a.importing(server, "r-1", "/v1/dlq/import?dry_run=true", text)
	if would.status != 200 || !strings.Contains(string(compact(would.body)), `{"dry_run":true,"imported":2,"left_out":1,"letters":[{"id":"search-1","sink":"search","table":"bank.questions","key":"1","result":"would be imported"},`) || len(a.shelf.imported) > 0 || a.acts() != 0 {
		t.Fatalf("%+v %s", would, would.body)
	}
	first := a.importing(server, "r-1", importPath, text)
	if first.status != 200 || fmt.Sprint(a.shelf.imported) != "[search-1 search-2]" || a.acts() != 1 || !strings.Contains(string(first.body), "left out: it is open already") {
		t.Fatalf("%+v %s", first, first.body)
	}
	a.restart()
	again := a.importing(server, "r-1", importPath, text)
	if again.status != 200 || !bytes.Equal(again.body, first.body) || again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("%+v %s", again, again.body)
	}
	for name, got := range map[string]answer{
		"another body":   a.importing(server, "r-1", importPath, text+"letter 4\n"),
		"a shorter body": a.importing(server, "r-1", importPath, "letter 1\n"),
		"another reason": a.importing(server, "r-1", importPath+"2", text),
	} {
		if got.status != 409 || got.code != "request_id_reused" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if len(a.shelf.imported) != 2 || a.acts() != 1 {
		t.Errorf("%v, %d acts", a.shelf.imported, a.acts())
	}
	acts, _, _ := audit.List(t.Context(), a.log, "shop", audit.Filter{})
	if got := acts[0]; got.Act != "dlq.import" || got.Actor != "olga" || got.Reason != "lost" || got.Counts["imported"] != 2 || got.Counts["left_out"] != 1 || len(got.Filter["sha256"]) != 64 {
		t.Errorf("%+v", got)
	}
	a.shelf.fail = errors.New("no broker")
	if got := a.importing(server, "r-2", importPath, text); got.status != 500 || got.detail != "1 of 2 letters are imported, and then: no broker; send it again under the same X-Request-ID" {
		t.Errorf("%+v", got)
	}
	a.shelf.fail = nil
	if got := a.importing(server, "r-2", importPath, text); got.status != 200 {
		t.Errorf("%+v", got)
	}
}

func TestWhatIsWrongWithAnImportIsOneSentenceAndChangesNothing(t *testing.T) {
	a := newAPI(t)
	server := a.serve(time.Minute)
	a.server.ImportBytes = 1000
	long := strings.Repeat("letter 1\n", 200)
	for want, got := range map[string]answer{
		"422 line_refused line 2: it is no letter; nothing was imported":         a.importing(server, "r", importPath, "letter 1\nx\n"),
		"400 reason_missing reason is missing; say why the letters are put back": a.importing(server, "r", "/v1/dlq/import", "letter 1\n"),
		"400 parameter_unknown ": a.importing(server, "r", importPath+"&force=true", "letter 1\n"),
		`400 parameter_invalid dry_run: "yes" is neither true nor false`:                      a.importing(server, "r", importPath+"&dry_run=yes", "letter 1\n"),
		"413 body_too_large the body has more than 1000 bytes; export and import it in parts": a.importing(server, "r", importPath, long),
		"413 body_too_large the body has more than 1000 bytes; ":                              a.send(server, "POST", importPath, operator, io.MultiReader(strings.NewReader(long)), lineType, "X-Request-ID: r"), // of a length that is not told
		"415 not_json ":           a.send(server, "POST", importPath, operator, strings.NewReader("letter 1\n"), jsonType, "X-Request-ID: r"),
		"400 request_id_missing ": a.send(server, "POST", importPath, operator, strings.NewReader("letter 1\n"), lineType),
		"403 role_viewer ":        a.send(server, "POST", importPath, viewer, strings.NewReader("letter 1\n"), lineType, "X-Request-ID: r"),
	} {
		if has := fmt.Sprint(got.status, " ", got.code, " ", got.detail); !strings.HasPrefix(has, want) || strings.Contains(got.detail, "\n") {
			t.Errorf("%s, want %s", has, want)
		}
	}
	a.shelf.unplaced = true
	if got := a.importing(server, "r", importPath, "letter 1\n"); got.status != 409 || got.code != "no_position" {
		t.Errorf("%+v", got)
	}
	if len(a.shelf.imported) > 0 || a.acts() != 0 {
		t.Errorf("%v, %d acts", a.shelf.imported, a.acts())
	}
}

// What ends before it is over, or stops, is no import, also where it ends between two lines.
func TestABodyThatIsCutOffOrStopsChangesNothing(t *testing.T) {
	a := newAPI(t)
	server := a.serve(time.Minute)
	a.server.patience = 200 * time.Millisecond
	send := func(framing, body string, hangUp bool) string {
		t.Helper()
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s\r\nX-Request-ID: r\r\n%s\r\n\r\n%s", importPath, operator, lineType, framing, body)
		if hangUp {
			_ = conn.(*net.TCPConn).CloseWrite()
		}
		text, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for name, got := range map[string]string{
		"cut off":       send("Content-Length: 100", "letter 1\nletter 2\n", true),
		"chunks":        send("Transfer-Encoding: chunked", "9\r\nletter 1\n\r\n", true),
		"stops":         send("Content-Length: 100", "letter 1\nletter 2\n", false),
		"stops, chunks": send("Transfer-Encoding: chunked", "9\r\nletter 1\n\r\n", false),
	} {
		want := `"code":"body_slow"`
		if !strings.HasPrefix(name, "stops") {
			want = `"code":"body_invalid"`
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if got := send("Content-Length: 9999999", "", false); !strings.Contains(got, `"code":"body_too_large"`) {
		t.Errorf("nothing of it has come yet: %s", got)
	}
	if len(a.shelf.imported) > 0 || a.acts() != 0 {
		t.Errorf("%v, %d acts", a.shelf.imported, a.acts())
	}
	if got := send("Transfer-Encoding: chunked", "9\r\nletter 1\n\r\n0\r\n\r\n", true); !strings.Contains(got, " 200 OK") || len(a.shelf.imported) != 1 {
		t.Errorf("a whole one: %s", got)
	}
}

// Whoever sends a body that there is no room for is told so, and not only cut off.
func TestABodyThatCannotBeKeptIsAnsweredBehindIt(t *testing.T) {
	a := newAPI(t)
	server := a.serve(time.Minute)
	a.server.ImportBytes = 1 << 30
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	full := syscall.Rlimit{Cur: 1 << 20, Max: was.Max} // as a disk without room
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &full); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was); err != nil {
			t.Error(err)
		}
	}()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	line := append(bytes.Repeat([]byte("x"), 1<<20-1), '\n')
	const lines = 64 // more than a socket takes
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s\r\nX-Request-ID: r\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", importPath, operator, lineType, lines*len(line))
	for range lines {
		if _, err := conn.Write(line); err != nil {
			t.Fatalf("it is cut off: %v", err)
		}
	}
	text, err := io.ReadAll(conn)
	if err != nil || !bytes.Contains(text, []byte(" 500 ")) || !bytes.Contains(text, []byte("the body cannot be kept until it is checked")) || len(a.shelf.imported) > 0 || a.acts() != 0 {
		t.Errorf("%s, %v", text, err)
	}
}

// takes is work that takes a time, in which the request must not be given up.
func (a *api) takes(d time.Duration) func(context.Context) {
	return func(ctx context.Context) {
		select {
		case <-ctx.Done():
			a.t.Errorf("the request was given up: %v", ctx.Err())
		case <-time.After(d):
		}
	}
}

// A body may take longer than any other request, as long as it goes on.
func TestABodyThatGoesOnIsWaitedFor(t *testing.T) {
	a := newAPI(t)
	server := a.serve(300 * time.Millisecond)
	body, feed := io.Pipe()
	go func() {
		for n := range 6 {
			time.Sleep(500 * time.Millisecond)
			fmt.Fprintf(feed, "letter 1%d\n", n)
		}
		feed.Close()
	}()
	a.server.patience, a.shelf.between = 2500*time.Millisecond, a.takes(time.Second) // and then it is checked
	if got := a.send(server, "POST", importPath, operator, body, lineType, "X-Request-ID: r"); got.status != 200 || len(a.shelf.imported) != 6 {
		t.Errorf("%+v", got)
	}
}

// Two at once are let in, a third is told to wait, and what is over makes room.
func TestFewLargeRequestsAreUnderWayAtOnce(t *testing.T) {
	a := newAPI(t)
	var stay atomic.Int32
	a.server.Stay = func(*http.Request) { stay.Add(1) }
	server := a.serve(time.Minute)
	var feeds []*io.PipeWriter
	ended := make(chan answer, bulkAtOnce)
	var all sync.WaitGroup
	defer all.Wait()
	for n := range bulkAtOnce {
		body, feed := io.Pipe()
		feeds = append(feeds, feed)
		all.Go(func() {
			ended <- a.send(server, "POST", importPath, operator, body, lineType, fmt.Sprint("X-Request-ID: r-", n))
		})
		fmt.Fprintf(feed, "letter %d\n", 10+n)
	}
	for deadline := time.Now().Add(2 * time.Minute); a.server.Load.bulk.Load() < bulkAtOnce; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("they do not begin")
		}
	}
	for _, got := range []answer{a.importing(server, "r-9", importPath, "letter 1\n"), a.send(server, "GET", "/v1/dlq/export", operator, nil)} {
		if got.status != 429 || got.code != "busy" || got.header.Get("Retry-After") != "5" {
			t.Errorf("%+v", got)
		}
	}
	if got := a.send(server, "GET", "/v1/dlq", operator, nil); got.status != 200 {
		t.Errorf("a list: %+v", got)
	}
	if n := stay.Load(); n != bulkAtOnce {
		t.Errorf("%d requests are meant to last; want the %d that are under way", n, bulkAtOnce)
	}
	for _, feed := range feeds {
		feed.Close()
	}
	for range feeds {
		if got := <-ended; got.status != 200 {
			t.Errorf("%+v", got)
		}
	}
	if got := a.importing(server, "r-9", importPath, "letter 1\n"); got.status != 200 {
		t.Errorf("%+v", got)
	}
}

// An answer names as many letters as it has room for and counts the others, so that it can be
// kept for a request that is repeated.
func TestTheAnswerToALargeImportIsKept(t *testing.T) {
	a := newAPI(t)
	server := a.serve(time.Minute)
	var text strings.Builder
	for n := range 5000 {
		fmt.Fprintf(&text, "letter %d\n", 1000+n)
	}
	first := a.importing(server, "r", importPath, text.String())
	again := a.importing(server, "r", importPath, text.String())
	if again.header.Get("Idempotent-Replayed") != "true" || !bytes.Equal(first.body, again.body) || !strings.Contains(string(first.body), `"imported": 5000`) || len(a.shelf.imported) != 5000 {
		t.Errorf("%d bytes, %d imported, %s", len(first.body), len(a.shelf.imported), first.body[:200])
	}
}
