package mysql

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-mysql-org/go-mysql/replication"
	"github.com/klauspost/compress/zstd"
)

// The fields of a transaction payload: a type, a length and a value each.
const (
	payloadEnd          = 0 // of the fields; the compressed events follow
	payloadSize         = 1
	payloadCompression  = 2
	payloadUncompressed = 3

	payloadZstd = 0
	payloadNone = 255
)

// maxWindow is the largest window of the highest level that a server can be set to.
const maxWindow = 128 << 20

// payloadReader unpacks compressed transactions event by event. It is reused from
// one to the next.
type payloadReader struct {
	body   *bufio.Reader // of the outer event
	zstd   *zstd.Decoder
	events *bufio.Reader // unpacked
}

func newPayloadReader() (*payloadReader, error) {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(1<<63))
	if err != nil {
		return nil, err
	}
	return &payloadReader{body: bufio.NewReaderSize(nil, 64<<10), zstd: decoder, events: bufio.NewReaderSize(nil, readBuffer)}, nil
}

// open begins with the next payload, of which fields are at the beginning of body.
func (p *payloadReader) open(body io.Reader) error {
	p.body.Reset(body)
	compression := uint64(payloadNone)
	for {
		kind, err := p.body.ReadByte()
		if err != nil {
			return unexpected(err)
		}
		if kind == payloadEnd {
			break
		}
		length, err := p.body.ReadByte()
		if err != nil {
			return unexpected(err)
		}
		value := make([]byte, length)
		if _, err := io.ReadFull(p.body, value); err != nil {
			return unexpected(err)
		}
		if kind == payloadCompression {
			if compression, _, err = lengthEncoded(value); err != nil {
				return err
			}
		}
	}
	switch compression {
	case payloadZstd:
		if err := p.zstd.Reset(p.body); err != nil {
			return err
		}
		p.events.Reset(p.zstd)
	case payloadNone:
		p.events.Reset(p.body)
	default:
		return stopf("SET PERSIST binlog_transaction_compression = OFF", "the log has a transaction compressed in a way that this version does not know (%d)", compression)
	}
	return nil
}

// next reads the next event, or returns io.EOF behind the last one.
func (p *payloadReader) next(ev *event) error {
	h, err := p.events.Peek(replication.EventHeaderSize)
	if err == io.EOF && len(h) > 0 {
		return io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	if err := ev.decodeHeader(h); err != nil {
		return err
	}
	size := int(ev.EventSize)
	if size > readBuffer {
		ev.data, err = readWhole(p.events, size)
		return err
	}
	if ev.data, err = p.events.Peek(size); err != nil {
		return unexpected(err)
	}
	_, err = p.events.Discard(size)
	return err
}

// close lets go of the payload.
func (p *payloadReader) close() {
	p.body.Reset(nil)
	p.events.Reset(nil)
	_ = p.zstd.Reset(nil)
}

// unpack takes the events of a compressed transaction one by one. They carry no
// checksums and count for the clock as they are when unpacked.
func (r *reader) unpack(outer *event) error {
	if r.payload == nil {
		var err error
		if r.payload, err = newPayloadReader(); err != nil {
			return err
		}
	}
	body := outer.rest
	if body == nil {
		body = bytes.NewReader(outer.body())
	}
	if err := r.payload.open(body); err != nil {
		return r.broken(outer, err)
	}
	defer r.payload.close()
	var end *event
	for {
		ev := event{}
		err := r.payload.next(&ev)
		if err == io.EOF {
			break
		}
		if err != nil {
			return r.broken(outer, err)
		}
		if end != nil {
			return r.broken(outer, fmt.Errorf("an event of type %s is behind its end", ev.EventType))
		}
		switch ev.EventType {
		case replication.XID_EVENT, replication.XA_PREPARE_LOG_EVENT: // held until the checksum is known
			ev.LogPos = outer.LogPos
			end = &ev
			continue
		case replication.TRANSACTION_PAYLOAD_EVENT:
			return r.broken(outer, errors.New("it has a compressed transaction in it"))
		case replication.QUERY_EVENT:
			ev.LogPos = outer.LogPos
		default: // the server leaves the place of inner events open
			ev.LogPos = outer.LogPos - outer.EventSize
		}
		if err := r.take(&ev); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, r.payload.body); err != nil {
		return r.broken(outer, err)
	}
	if end != nil {
		return r.take(end)
	}
	return nil
}

// broken says what is wrong with a compressed transaction. One that comes as a
// stream may be cut off with its connection, or damaged on its way, and is asked for
// again; the checksum of one that is held was right.
func (r *reader) broken(outer *event, err error) error {
	err = fmt.Errorf("the compressed transaction %s at %s:%d: %w", r.txn.gtid, r.file, outer.LogPos, err)
	if outer.rest != nil {
		return lost(err)
	}
	return err
}
