// Package files reads what a configuration names: files, and not what only has their name.
package files

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// Most is how many bytes a file may have.
const Most = 4 << 20

// Read gives the content of a file. A pipe, a device, a directory and a file that is larger than
// Most are errors, at once: a process reads its files again while it runs, and none may keep it
// waiting or take its memory.
func Read(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // which waits for nobody to write into a pipe
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file; give the path of one", path)
	}
	return content(file)
}

// Secret is the text of a file without line ends behind it. An empty one is an error.
func Secret(path string) (string, error) {
	content, err := Read(path)
	if err != nil {
		return "", err
	}
	text := strings.TrimRight(string(content), "\r\n")
	if text == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return text, nil
}

// Drain gives what comes out of a pipe until it is closed, Most at most.
func Drain(path string) ([]byte, error) {
	pipe, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer pipe.Close()
	return content(pipe)
}

func content(file *os.File) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(file, Most+1))
	if err == nil && len(text) > Most {
		err = fmt.Errorf("%s has more than %d bytes", file.Name(), Most)
	}
	return text, err
}
