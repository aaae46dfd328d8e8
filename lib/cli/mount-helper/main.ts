#!/usr/bin/env -S -u NODE_OPTIONS node
/** mount(8)'s helper, as a program: the caller's NODE_OPTIONS are meant for other programs. */
import { mountHelper } from './run.js';

process.exitCode = mountHelper(process.argv.slice(2));
