#!/usr/bin/env -S -u NODE_OPTIONS node
/** The mount(8) helper as a program. It ignores the caller's NODE_OPTIONS, which are meant for other programs. */
import { mountHelper } from './run.js';

process.exitCode = mountHelper(process.argv.slice(2));
