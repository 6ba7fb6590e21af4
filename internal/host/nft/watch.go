package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Watch reports from now on that somebody else has changed the table of a family: it sends to the channel, without waiting,
// after each transaction of others in which the table occurs, and where the kernel had more to tell than could be heard. conns
// are those whose own transactions are left out. The channel is closed when the context ends, unless Watch fails.
//
// The kernel tells of each element that anybody writes, ours too: while there is somebody to tell, that takes a quarter of
// the time of writing very many.
func Watch(ctx context.Context, changed chan<- struct{}, table string, conns ...*Conn) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("netlink socket for nf_tables: %w", err)
	}
	// The runtime's poller lets Close end a Read.
	file := os.NewFile(uintptr(fd), "nf_tables notifications")
	mine := make(map[uint32]bool)
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	for _, c := range conns {
		if err == nil {
			var at unix.Sockaddr
			at, err = unix.Getsockname(int(c.writes))
			if nl, ok := at.(*unix.SockaddrNetlink); ok {
				mine[nl.Pid] = true
			}
		}
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES)
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	}
	if err != nil {
		return fmt.Errorf("subscribe to changes of nf_tables: %w", errors.Join(err, file.Close()))
	}
	stop := context.AfterFunc(ctx, func() { file.Close() })
	go func() {
		defer close(changed)
		defer stop()
		buf := make([]byte, receiveBuffer/4)
		for {
			n, err := file.Read(buf)
			// ENOBUFS: messages were lost, among them perhaps one about the table.
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			if err == nil && !concerns(buf[:n], table, mine) {
				continue
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return nil
}

// concerns says whether one of the messages is about the table and not from one of our own sockets. In all of nf_tables'
// messages that name a table the attribute for it is the first kind.
func concerns(buf []byte, table string, mine map[uint32]bool) bool {
	const header, generic = unix.SizeofNlMsghdr, 4
	for len(buf) >= header {
		size := int(binary.NativeEndian.Uint32(buf))
		if size < header || size > len(buf) {
			return false
		}
		kind, pid := binary.NativeEndian.Uint16(buf[4:]), binary.NativeEndian.Uint32(buf[12:])
		if kind>>8 == unix.NFNL_SUBSYS_NFTABLES && kind&0xff != unix.NFT_MSG_NEWGEN && !mine[pid] && size >= header+generic {
			found := false
			_ = Attrs(string(buf[header+generic:size]), func(a Attr) {
				found = found || a.Type == unix.NFTA_TABLE_NAME && a.Text() == table
			})
			if found {
				return true
			}
		}
		buf = buf[min(len(buf), (size+3)&^3):]
	}
	return false
}
