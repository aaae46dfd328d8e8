/** The packed package, installed once for all of these tests, as a program's author finds it. */
import './installed/contents.js';
import './installed/programs.js';
import './installed/types.js';
import './installed/deno.js';
import './installed/bundlers.js';
