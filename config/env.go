package config

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// expand replaces ${NAME} by the variable's value, ${NAME:-text} by its value or,
// when it is unset or empty, by text, and $$ by $. Any other $ stands for itself.
// It works on a value that YAML has parsed already, so what a variable holds is
// never read as YAML. Errors name the variable and nothing else of the text.
func expand(text string, env func(string) (string, bool)) (string, error) {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(text, "$")
		b.WriteString(before)
		switch {
		case !found:
			return b.String(), nil
		case strings.HasPrefix(rest, "$"):
			b.WriteByte('$')
			text = rest[1:]
		case strings.HasPrefix(rest, "{"):
			body, after, closed := strings.Cut(rest[1:], "}")
			if !closed {
				return "", errors.New("${ is not closed; write ${NAME}, or $${ for the characters themselves")
			}
			name, fallback, hasFallback := strings.Cut(body, ":-")
			if !variableName.MatchString(name) || strings.Contains(fallback, "${") {
				return "", errors.New("what stands between ${ and } is not a variable; write ${NAME} or ${NAME:-text}, or $${ for the characters themselves")
			}
			value, set := env(name)
			if !set && !hasFallback {
				return "", fmt.Errorf("the environment variable %s is not set; set it, or give a default: ${%s:-text}", name, name)
			}
			if value == "" && hasFallback {
				value = fallback
			}
			b.WriteString(value)
			text = after
		default:
			b.WriteByte('$')
			text = rest
		}
	}
}
