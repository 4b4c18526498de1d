package testenv

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
)

// lowestPort is the lowest that FreeAddr gives.
const lowestPort = 20_000

// portsGiven begins anywhere, so that processes at the same time hardly meet.
var portsGiven atomic.Uint32

func init() { portsGiven.Store(rand.Uint32N(1 << 16)) }

// FreeAddr is an address on which nobody listens yet. Its port lies below those that the system gives
// to whoever connects or listens on port 0, where there is room, so that nothing takes it before the
// server starts, or while it is away.
func FreeAddr(t testing.TB) string {
	t.Helper()
	room := max(systemPorts(), lowestPort) - lowestPort
	for range room {
		if addr, ok := free(lowestPort + portsGiven.Add(1)%room); ok {
			return addr
		}
	}
	addr, ok := free(0)
	if !ok {
		t.Fatal("there is no free port")
	}
	return addr
}

// free reports whether nobody listens on a port, and its address. Port 0 is any.
func free(port uint32) (addr string, ok bool) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return "", false
	}
	defer l.Close()
	return l.Addr().String(), true
}

// systemPorts is the first of the ports that the system gives by itself: ip_local_port_range of ip(7),
// or what Linux has by default.
func systemPorts() (first uint32) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		_, err = fmt.Sscan(string(text), &first)
	}
	if err != nil {
		return 32_768
	}
	return first
}
