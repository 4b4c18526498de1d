package redis

import (
	"strconv"
	"strings"
	"sync"
)

// slots is how many hash slots a cluster has.
const slots = 16384

// slotOf is the hash slot of a key, by the cluster specification: CRC16 (XMODEM) of
// the key, or of its hash tag.
func slotOf(key string) int {
	if open := strings.IndexByte(key, '{'); open >= 0 {
		if length := strings.IndexByte(key[open+1:], '}'); length > 0 {
			key = key[open+1 : open+1+length]
		}
	}
	crc := uint16(0)
	for i := range len(key) {
		crc ^= uint16(key[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc) % slots
}

// slotTags are hash tags for every markSlots-th slot, in the order of the slots.
var slotTags = sync.OnceValue(func() []string {
	tags := make([]string, slots/markSlots)
	for n, left := 0, len(tags); left > 0; n++ {
		tag := strconv.Itoa(n)
		if slot := slotOf(tag); slot%markSlots == 0 && tags[slot/markSlots] == "" {
			tags[slot/markSlots] = tag
			left--
		}
	}
	return tags
})
