package admin

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	pageDefault = 100
	pageMost    = 1000
)

// paged are the parameters of a list of which a page is given.
func paged(usual int, chosen ...Param) []Param {
	return append(slices.Clone(chosen),
		Param{Name: "limit", Type: "integer", Doc: fmt.Sprintf("how many at most, 1 to %d; %d when it is left out", pageMost, usual)},
		Param{Name: "cursor", Doc: "next of the page before; everything else must be as it was there"})
}

// page is which part of a list is asked for.
type page struct {
	fields map[string]string // that choose
	limit  int
	last   cursor
}

// page reads the parameters of a list.
func (r *Request) page(known []Param, usual int) (p page, err error) {
	if p.fields, err = r.fields(known); err != nil {
		return p, err
	}
	if p.limit, err = limitOf(p.fields, usual); err != nil {
		return p, err
	}
	from, goesOn := p.fields["cursor"]
	delete(p.fields, "cursor")
	if goesOn {
		p.last, err = parseCursor(from, listOf(p.fields))
	}
	return p, err
}

// behind reports whether something of the list comes behind the page before.
func (p page) behind(at time.Time, id string) bool {
	return p.last.ID == "" || cmp.Or(at.Compare(p.last.At), strings.Compare(id, p.last.ID)) > 0
}

// cut is a page of a list, whose order is by place, and the cursor of the next one.
func cut[T any](list []T, p page, place func(T) (time.Time, string)) ([]T, string) {
	if len(list) <= p.limit {
		return append([]T{}, list...), ""
	}
	at, id := place(list[p.limit-1])
	return list[:p.limit], cursor{at, id, listOf(p.fields)}.String()
}

// cursor is the place behind the last letter of a page, and of which list.
type cursor struct {
	At time.Time `json:"t"`
	ID string    `json:"i"`
	Of string    `json:"q"`
}

func (c cursor) String() string {
	text, err := json.Marshal(c)
	if err != nil {
		panic(err) // a time of a letter
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

// parseCursor reads a cursor of the list with these fields.
func parseCursor(text, of string) (c cursor, err error) {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	switch {
	case err != nil || c.ID == "":
		return c, problem(http.StatusBadRequest, "cursor_invalid", "the cursor is none that a page gave; begin without one")
	case c.Of != of:
		return c, problem(http.StatusBadRequest, "cursor_invalid", "the cursor belongs to a list with other parameters; begin without one, or give the same ones")
	}
	return c, nil
}

// listOf stands for the fields of a list.
func listOf(fields map[string]string) string {
	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		fmt.Fprintf(sum, "%q=%q\n", name, fields[name])
	}
	return base64.RawURLEncoding.EncodeToString(sum.Sum(nil)[:6])
}

// limitOf takes the limit out of the fields of a query.
func limitOf(fields map[string]string, usual int) (limit int, err error) {
	limit = usual
	if text, given := fields["limit"]; given {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > pageMost {
			return 0, problem(http.StatusBadRequest, "parameter_invalid", "limit: %q is not 1 to %d", text, pageMost)
		}
	}
	delete(fields, "limit")
	return limit, nil
}
