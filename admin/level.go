package admin

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
)

type levelBody struct {
	Level  string `json:"level" doc:"debug, info, warn or error"`
	Reason string `json:"reason,omitempty" doc:"why; it stands in the audit log"`
}

type levelDone struct {
	Level string `json:"level" doc:"the least important line that is written from now on"`
	Was   string `json:"was" doc:"and before"`
}

// LevelRoutes are the operations on the log of a process.
func LevelRoutes(level *slog.LevelVar) []Route {
	named := func() string { return strings.ToLower(level.Level().String()) }
	return []Route{{
		Method: http.MethodPut, Path: "/v1/log-level", ID: "setLogLevel", Short: "Change the level of this process's log", Body: levelBody{}, Answer: levelDone{},
		Long:  "It holds until the process ends or log.level of the configuration file changes. GET /v1/status says what it is.",
		Codes: []Code{{http.StatusBadRequest, "parameter_invalid", ""}},
		Act:   "log.level",
		Write: func(_ context.Context, r *Request) (*Work, error) {
			var body levelBody
			if err := r.Decode(&body); err != nil {
				return nil, err
			}
			levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
			next, ok := levels[body.Level]
			if !ok {
				return nil, problem(http.StatusBadRequest, "parameter_invalid", "level: %q is not known; use debug, info, warn or error", body.Level)
			}
			return &Work{Filter: map[string]string{"level": body.Level}, Reason: body.Reason, Do: func(context.Context) (any, map[string]int, error) {
				done := levelDone{body.Level, named()}
				level.Set(next)
				return done, map[string]int{"processes": 1}, nil
			}}, nil
		},
	}}
}
