"""The TVM emitter: kernel programs to TIR and LLVM object code. Nothing outside this folder imports TVM."""
