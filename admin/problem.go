package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// Problem is an answer that says why not, as RFC 9457 has it: application/problem+json.
type Problem struct {
	Type   string `json:"type" doc:"about:blank: the code tells problems apart"`
	Title  string `json:"title" doc:"the meaning of the status"`
	Status int    `json:"status" doc:"the status of the answer"`
	Detail string `json:"detail" doc:"what is wrong and what mends it, in one sentence"`
	// Code is what programs tell problems by. None takes another meaning.
	Code      string `json:"code" doc:"what programs tell problems by, such as request_id_missing"`
	RequestID string `json:"request_id,omitempty" doc:"the X-Request-ID of the request, or the one that it was given"`
}

func (p *Problem) Error() string { return p.Detail }

func problem(status int, code, format string, args ...any) *Problem {
	return &Problem{Status: status, Code: code, Detail: fmt.Sprintf(format, args...)}
}

// problemOf is err as an answer. What is no Problem yet is either somebody who does not
// answer in time, or ours.
func problemOf(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return problem(http.StatusServiceUnavailable, "timeout", "it took too long: %v", err)
	}
	return problem(http.StatusInternalServerError, "internal", "%v", err)
}
