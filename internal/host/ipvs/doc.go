// Package ipvs reads and writes the kernel's tables of virtual and real servers.
package ipvs
