package kafka

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	kafkago "github.com/segmentio/kafka-go"
)

// here names the place whose process ids we can look at: this boot of this machine
// and this pid namespace. It is empty where there is no /proc.
func here() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	space, err2 := os.Readlink("/proc/self/ns/pid")
	if err != nil || err2 != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + "." + strings.Trim(space, "pid:[]")
}

// born is when a process began, in ticks since boot, which tells it from a later
// one with the same id. It is empty when there is none.
func born(pid int) string {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

// memberName is what a member of the lease's group is called at the broker.
func memberName(clientID string) string {
	place := here()
	if place == "" {
		return clientID
	}
	return fmt.Sprintf("%s.%s.%d.%s", clientID, place, os.Getpid(), born(os.Getpid()))
}

// died reports whether a member was a process of this place that has ended.
func died(clientID, member string) bool {
	place := here()
	rest, ok := strings.CutPrefix(member, clientID+"."+place+".")
	if place == "" || !ok {
		return false
	}
	id, began, ok := strings.Cut(rest, ".")
	pid, err := strconv.Atoi(id)
	return ok && err == nil && born(pid) != began
}

// buryDead takes members out of the group whose processes ran here and were killed,
// so that a capture that is started again does not wait for its own ghost. What
// fails, or takes as long as that, is left to the timeout.
func (l *Lease) buryDead(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, l.Client.cfg.LeaseTimeout)
	defer cancel()
	api, clientID := l.Client.api, l.Client.dialer.ClientID
	groups, err := api.DescribeGroups(ctx, &kafkago.DescribeGroupsRequest{GroupIDs: []string{l.Group}})
	if err != nil {
		return
	}
	for _, g := range groups.Groups {
		for _, m := range g.Members {
			if !died(clientID, m.ClientID) {
				continue
			}
			if _, err := api.LeaveGroup(ctx, &kafkago.LeaveGroupRequest{GroupID: l.Group, Members: []kafkago.LeaveGroupRequestMember{{ID: m.MemberID}}}); err == nil {
				l.Log.Info("a process that was killed here has left the group", "group", l.Group, "member", m.MemberID)
			}
		}
	}
}
