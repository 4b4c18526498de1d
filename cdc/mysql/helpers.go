package mysql

import (
	"context"
	"regexp"

	"lockstep/cdc"
)

// The values of Config.AfterAlter and Config.HelperTables.
const (
	alterRecopy    = "recopy"
	alterLeave     = "leave"
	helpersSkip    = "skip"
	helpersCapture = "capture"
)

// gh-ost: _t_gho, _t_ghc and _t_del, with a time before the end when it is told so.
// pt-online-schema-change: _t_new and _t_old, with more _ in front when those are taken.
var helper = regexp.MustCompile(`^_.+_(gho|ghc|ghr|del|new|old)$`)

// Helper reports whether a table of this name is left out when only a pattern
// matches it: one that a tool for changing tables online makes beside the table
// and swaps with it or drops in the end.
func (c Config) Helper(table string) bool {
	return c.HelperTables != helpersCapture && helper.MatchString(table)
}

// TableNames lists the tables of the source that match, sorted.
func TableNames(ctx context.Context, cfg Config, match func(cdc.TableName) bool) ([]cdc.TableName, error) {
	conn, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer until(ctx, conn)()
	return listTables(conn, match)
}
