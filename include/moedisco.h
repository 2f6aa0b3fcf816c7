/* moedisco.h - train Mixture-of-Experts language models cheaply: MoE-DisCo as a C library.
 * Licence: Apache-2.0. This header and those below it are C99 and C++11. */
#ifndef MOEDISCO_H
#define MOEDISCO_H

#include "moedisco/base.h"
#include "moedisco/context.h"
#include "moedisco/model.h"
#include "moedisco/corpus.h"
#include "moedisco/cluster.h"
#include "moedisco/split.h"
#include "moedisco/integrate.h"
#include "moedisco/upcycle.h"
#include "moedisco/expand.h"
#include "moedisco/train.h"
#include "moedisco/evaluate.h"
#include "moedisco/law.h"
#include "moedisco/growth.h"

#endif
