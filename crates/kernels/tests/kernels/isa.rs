//! How an instruction set is chosen.

use drivetrain_kernels::Isa;

#[test]
fn a_name_chooses_what_the_machine_has() {
    assert_eq!(Isa::choose(None).unwrap(), Isa::detect());
    assert_eq!(Isa::choose(Some(" ")).unwrap(), Isa::detect());
    assert_eq!(Isa::choose(Some("Scalar")).unwrap(), Isa::SCALAR);
    for isa in crate::available() {
        assert_eq!(Isa::choose(Some(isa.name())).unwrap(), isa);
    }
    for name in Isa::absent() {
        let error = Isa::choose(Some(name)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(Isa::detect().name()), "{error}");
    }
}

#[test]
fn a_wrong_name_is_answered_with_the_choices() {
    let error = Isa::choose(Some("sse9")).unwrap_err().to_string();
    assert_eq!(
        error,
        "DRIVETRAIN_FORCE_ISA=sse9: no such instruction set; choose one of scalar, avx2, \
         avx512, avx512vnni, avx512fp16"
    );
}
