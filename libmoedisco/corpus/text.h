/* corpus/text.h - text found in folders, files and JSON lines. */
#ifndef MOEDI_TEXT_H
#define MOEDI_TEXT_H

#include "builder.h"

/* Reads one path that the caller named, into the builder: a folder, a text file or JSON lines. */
moed_status moedi_text_read(moedi_builder *b, const char *path);

#endif
